"""JSON files of an artifact, read with limits: a damaged or hostile file ends in one clear error."""

import json
from pathlib import Path

from onnxforge.runtimes.errors import ArtifactError

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 64


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object: at most 8 MiB, 64 levels, no key twice, no NaN or Infinity.

    Raises ArtifactError, naming the file, for anything else.
    """
    value = _read(path)
    if not isinstance(value, dict):
        raise ArtifactError(f"{path}: a JSON object was expected, found {type(value).__name__}.")
    return value


def read_json_list(path: Path) -> list[object]:
    """Read a JSON array, with the limits of `read_json`."""
    value = _read(path)
    if not isinstance(value, list):
        raise ArtifactError(f"{path}: a JSON array was expected, found {type(value).__name__}.")
    return value


def read_optional_json(path: Path) -> dict[str, object]:
    """As `read_json`; an absent file is an empty object."""
    return read_json(path) if path.exists() else {}


def _read(path: Path) -> object:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ArtifactError(f"{path}: {size} bytes of JSON; at most {MAX_BYTES} are read. Compile again.")
        value: object = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys, parse_constant=_refuse_constant
        )
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path}: not a readable JSON file ({error}). Compile the artifact again."
        ) from error
    if _depth(value) > MAX_DEPTH:
        raise ArtifactError(f"{path}: nested deeper than {MAX_DEPTH} levels.")
    return value


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} appears twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _depth(value: object) -> int:
    level, deepest = [value], 0
    while level:
        deepest += 1
        children: list[object] = []
        for item in level:
            if isinstance(item, dict):
                children.extend(item.values())
            elif isinstance(item, list):
                children.extend(item)
        level = children
    return deepest - 1
