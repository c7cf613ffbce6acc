"""The artifact's manifest, ``artifact.json``: what the folder holds, where it came from, how to run it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePosixPath

from onnxforge.runtimes.errors import ArtifactError
from onnxforge.runtimes.json_fields import JsonFields
from onnxforge.runtimes.speculation import Speculation, read_speculation
from onnxforge.runtimes.strict_json import read_json

MANIFEST = "artifact.json"
FORMAT = 1
_MAY_BE_ABSENT = {"cache_dtype", "provider_options", "speculation"}
"""Later additions; an artifact without them is read as before."""
DECODER_TASK = "text-generation-with-past"


@dataclass(frozen=True)
class FileRecord:
    """One file of the artifact: path relative to the folder, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """``artifact.json``. Written last, read first."""

    name: str
    task: str
    """optimum's task name: ``text-generation-with-past``, ``feature-extraction``, ..."""
    model_type: str
    target: str
    pipeline: tuple[str, ...]
    """Text form of every pass that ran, in order."""
    graph: str
    """Relative path of the graph, ``onnx/model.onnx``."""
    provider: str
    """Execution provider, ``CPUExecutionProvider``."""
    session: Mapping[str, str]
    """ONNX Runtime session config entries this target needs."""
    context_length: int
    """Largest number of tokens, prompt and answer together."""
    shared_cache: bool
    """Every attention accepts past and present in one buffer (GroupQueryAttention)."""
    files: tuple[FileRecord, ...]
    """Every file in the folder except the manifest itself."""
    source: Mapping[str, str] = field(default_factory=dict)
    """``ref`` and the sha256 of each source file."""
    versions: Mapping[str, str] = field(default_factory=dict)
    summary: Mapping[str, float | str | bool] = field(default_factory=dict)
    """Headline numbers of the report."""
    cache_dtype: str = "float32"
    """Element type of past and present: ``float32``, ``float16`` or ``int8``."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """Options of the execution provider, as ONNX Runtime spells them; for the provider named above only."""
    speculation: Speculation | None = None
    """Whether and how requests speculate by default; None, and an absent key: they do not."""
    format: int = FORMAT


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/artifact.json``.

    Raises ArtifactError when it is absent, is not the JSON this version writes, or has another format number.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file() or path.is_symlink():
        raise ArtifactError(
            f"{path}: no such file, so {folder} is not an artifact. Pass a folder that compile wrote."
        )
    raw = read_json(path)
    found = raw.get("format")
    if found != FORMAT or isinstance(found, bool):
        raise ArtifactError(
            f"{path}: artifact format {found!r}; this version reads format {FORMAT}. "
            "Compile the model again, or install the matching version."
        )
    return _parse(path, raw)


def write_manifest(folder: Path, manifest: Manifest) -> Path:
    """Write ``folder/artifact.json``: equal manifests give equal bytes. Returns the path written."""
    raw = asdict(manifest)
    if manifest.speculation is None:
        del raw["speculation"]
    elif manifest.speculation.draft_model is None:
        del raw["speculation"]["draft_model"]
    raw["files"] = sorted(raw["files"], key=lambda record: str(record["path"]))
    path = Path(folder) / MANIFEST
    text = json.dumps(raw, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
    return path


def _parse(path: Path, raw: dict[str, object]) -> Manifest:
    known = {item.name for item in fields(Manifest)}
    absent, unknown = sorted(known - raw.keys() - _MAY_BE_ABSENT), sorted(raw.keys() - known)
    if absent or unknown:
        raise ArtifactError(
            f"{path}: keys missing: {absent}; keys not known: {unknown}. Compile the model again."
        )
    reader = JsonFields(str(path), raw)
    manifest = Manifest(
        name=reader.text("name"),
        task=reader.text("task"),
        model_type=reader.text("model_type"),
        target=reader.text("target"),
        pipeline=reader.texts("pipeline"),
        graph=reader.text("graph"),
        provider=reader.text("provider"),
        session=reader.text_map("session"),
        context_length=reader.positive("context_length"),
        shared_cache=reader.flag("shared_cache"),
        files=_records(reader, "files"),
        source=reader.text_map("source"),
        versions=reader.text_map("versions"),
        summary=reader.scalars("summary"),
        cache_dtype=reader.text("cache_dtype") if "cache_dtype" in raw else "float32",
        provider_options=reader.text_map("provider_options") if "provider_options" in raw else {},
        speculation=read_speculation(f"{path}: speculation", raw["speculation"])
        if "speculation" in raw
        else None,
    )
    paths = [record.path for record in manifest.files]
    if manifest.graph not in paths:
        raise ArtifactError(f"{path}: the graph {manifest.graph!r} is not among the listed files.")
    if len(set(paths)) != len(paths):
        raise ArtifactError(f"{path}: a file is listed twice.")
    if manifest.speculation is not None:
        _check_speculation(path, manifest.speculation, manifest.shared_cache, paths)
    return manifest


def _check_speculation(path: Path, said: Speculation, shared_cache: bool, files: Sequence[str]) -> None:
    if said.enabled and not shared_cache:
        raise ArtifactError(f"{path}: speculation is enabled, which needs shared_cache; this is without it.")
    draft, model = said.draft_graph, said.draft_model
    if draft is not None and draft not in files:
        raise ArtifactError(f"{path}: the draft's graph {draft!r} is not among the listed files.")
    if model is not None and f"{model}/{MANIFEST}" not in files:
        raise ArtifactError(f"{path}: no {MANIFEST} of the draft model {model!r} is among the listed files.")


def _records(reader: JsonFields, key: str) -> tuple[FileRecord, ...]:
    value = reader.raw[key]
    if not isinstance(value, list):
        raise reader.fail(key, "a list of file records")
    return tuple(_record(reader, key, item) for item in value)


def _record(reader: JsonFields, key: str, item: object) -> FileRecord:
    match item:
        case {"path": str(path), "size": int(size), "sha256": str(digest), **rest} if not rest:
            if not isinstance(size, bool) and size >= 0 and _is_inside(path) and _is_digest(digest):
                return FileRecord(path=path, size=size, sha256=digest)
    raise ArtifactError(
        f"{reader.where}: {key!r} holds {item!r:.200}; each record needs a relative path inside the folder, "
        "a size and a sha256 in hex, and nothing else."
    )


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = bool(parts) and "\\" not in path and "\0" not in path and str(PurePosixPath(path)) == path
    return plain and not path.startswith("/") and ".." not in parts and path != MANIFEST


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= set("0123456789abcdef")
