"""The artifact's manifest, ``artifact.json``: what the folder holds, where it came from, how to run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

MANIFEST = "artifact.json"
FORMAT = 1


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
    format: int = FORMAT
