"""The manifest of a staging folder: what every file is, where it came from, and what made it."""

import hashlib
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.provider_options import provider_options
from onnxforge.compiler.save import GRAPH
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Source
from onnxforge.runtimes.artifact import MANIFEST, FileRecord, Manifest

REPORT = "report/"
"""Below it lies what was measured; everything else follows from the input alone."""
_TOOLS = (
    "onnxforge", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "tokenizers", "torch",
    "transformers",
)  # fmt: skip
_IN_PLACE_OF = {"onnxruntime": ("onnxruntime-gpu",)}
"""Distributions of the same module."""


def file_records(folder: Path, known: Sequence[FileRecord] = ()) -> tuple[FileRecord, ...]:
    """A record of every file below ``folder`` except the manifest; ``known`` files are not read again."""
    hashed = {record.path: record for record in known}
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return tuple(hashed.get(name) or _record(folder, name) for name in names if name != MANIFEST)


def content_digest(records: Sequence[FileRecord]) -> str:
    """sha256 over names and digests of every file outside ``report/``: equal inputs give equal digests."""
    lines = "".join(f"{r.sha256}  {r.path}\n" for r in records if not r.path.startswith(REPORT))
    return hashlib.sha256(lines.encode()).hexdigest()


def manifest_for(
    folder: Path,
    *,
    source: Source,
    facts: GraphFacts,
    target: Target,
    task: str,
    context_length: int,
    name: str,
) -> Manifest:
    """The manifest of the files that are in ``folder`` now."""
    records = file_records(folder)
    return Manifest(
        name=name,
        task=task,
        model_type=str(source.config.get("model_type", "unknown")),
        target=target.name,
        pipeline=target.passes,
        graph=GRAPH,
        provider=target.provider,
        session=target.session,
        provider_options=provider_options(target.provider, facts, context_length),
        context_length=context_length,
        shared_cache=facts.shared_cache,
        cache_dtype=facts.cache_dtype,
        files=records,
        source={"ref": source.ref, **source.digests},
        versions=tool_versions(),
        summary={"content_digest": content_digest(records), "proof": False},
    )


def with_new_files(folder: Path, manifest: Manifest) -> Manifest:
    """``manifest`` with the files that came into ``folder`` since."""
    records = file_records(folder, manifest.files)
    summary = {**manifest.summary, "content_digest": content_digest(records)}
    return replace(manifest, files=records, summary=summary)


def tool_versions() -> Mapping[str, str]:
    """Versions of everything that had a hand in the bytes."""
    return {"python": platform.python_version(), **{tool: _version(tool) for tool in _TOOLS}}


def _version(distribution: str) -> str:
    for name in (distribution, *_IN_PLACE_OF.get(distribution, ())):
        with suppress(PackageNotFoundError):
            return version(name) if name == distribution else f"{version(name)} ({name})"
    return "absent"


def _record(folder: Path, name: str) -> FileRecord:
    path = folder / name
    with open(path, "rb") as file:
        return FileRecord(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
