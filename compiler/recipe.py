"""The plan of one compile as JSON: ``--dry-run`` prints it, ``--config`` replays it, ``report/`` keeps it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.nearest import nearest
from onnxforge.compiler.target_file import Plain, target_from, to_mapping
from onnxforge.compiler.targets import Target

FORMAT = 1
_KEYS = ("format", "model", "revision", "task", "target")


@dataclass(frozen=True)
class Recipe:
    """What is compiled, and with which passes: everything about a compile but where it goes."""

    model: str
    target: Target
    task: str | None = None
    revision: str | None = None


def to_json(recipe: Recipe) -> str:
    """The recipe as indented JSON."""
    content = {
        "format": FORMAT,
        "model": recipe.model,
        "revision": recipe.revision,
        "task": recipe.task,
        "target": to_mapping(recipe.target),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def read_recipe(path: Path) -> Recipe:
    """The recipe in the JSON file at ``path``.

    Raises:
        RequestRefused: unreadable, another format, or an unknown key.
    """
    try:
        raw: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestRefused(f"The recipe {path} cannot be read: {error}.") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise RequestRefused(
            f"{path} is no recipe of format {FORMAT}: make one with `compile ... --dry-run`."
        )
    for key in raw:
        if key not in _KEYS:
            raise RequestRefused(f"{path}: a recipe has no `{key}`{nearest(key, _KEYS)}")
    target: object = raw.get("target")
    if not isinstance(target, Mapping):
        raise RequestRefused(f"{path}: the recipe names no `target`.")
    return Recipe(
        model=_text(raw, "model", path) or "",
        target=target_from(target, str(path)),
        task=_text(raw, "task", path),
        revision=_text(raw, "revision", path),
    )


def _text(raw: Mapping[str, Plain], key: str, path: Path) -> str | None:
    value = raw.get(key)
    if value is not None and not isinstance(value, str):
        raise RequestRefused(f"{path}: `{key}` is to be text, not {value!r}.")
    return value
