"""Everything one proof measured, as one value: the report is written from this and from nothing else."""

import dataclasses
import importlib.metadata
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias

from onnxforge.compiler.calibration_use import CalibrationUse
from onnxforge.compiler.cuda_graph_report import CudaGraphReport
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.parity import EncoderParity
from onnxforge.compiler.perplexity import Divergence
from onnxforge.compiler.placement_report import PlacementPart
from onnxforge.compiler.proof_decoding import DecodingParity
from onnxforge.compiler.proof_layers import LayerError
from onnxforge.compiler.quantizer_report import QuantizerReport
from onnxforge.compiler.roofline import Machine, Roofline
from onnxforge.compiler.speculation_types import SpeculationReport
from onnxforge.compiler.speed_types import SpeedReport
from onnxforge.compiler.structure_check import StructureCheck
from onnxforge.compiler.traffic import Traffic

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_PACKAGES = (
    "onnxforge",
    "onnxruntime",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "numpy",
    "tokenizers",
    "torch",
    "transformers",
)


@dataclass(frozen=True)
class Verdict:
    """One budget line and what was measured for it."""

    line: str
    measured: float
    held: bool


@dataclass(frozen=True)
class Evidence:
    """The measured facts of one compile."""

    model: str
    task: str
    target: str
    target_summary: str
    """What that target is, in one line."""
    provider: str
    """The execution provider that the artifact was compiled for."""
    verified_on: str
    """The one that it was measured on: the same, or the CPU's where this machine lacks it."""
    command: tuple[str, ...]
    seed: int
    reference: str
    """What quality is held against, in words."""
    baseline: str
    """What speed is held against, in words."""
    protocol: str
    """How quality was scored, in words."""
    parameters: int
    """As the source counts them, buffers and tables left out, less those that pruning removed."""
    traffic: Traffic
    reference_traffic: Traffic
    size: int
    """Bytes of graph and weights on disk."""
    reference_size: int
    ops_before: Mapping[str, int]
    ops_after: Mapping[str, int]
    ledger: Ledger
    calibration: tuple[CalibrationUse, ...] = ()
    structure: tuple[StructureCheck, ...] = ()
    placement: tuple[PlacementPart, ...] = ()
    """Where CUDA would be given each node; nothing for other providers."""
    quantizers: QuantizerReport | None = None
    """What the provider does with the quantizers that the graph holds; None where it holds none."""
    divergence: Divergence | None = None
    encoder: EncoderParity | None = None
    decoding: DecodingParity | None = None
    layers: tuple[LayerError, ...] = ()
    speed: SpeedReport | None = None
    baseline_speed: SpeedReport | None = None
    machine: Machine | None = None
    rooflines: tuple[Roofline, ...] = ()
    cuda_graph: CudaGraphReport | None = None
    """None where it was not measured: without a GPU, and for what records no steps."""
    speculation: SpeculationReport | None = None
    """None where it was not measured: encoders, other providers, caches that cannot be rewound."""
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    """What a reader must know to read the numbers rightly: what was not measured, and why."""
    summary: Mapping[str, float | str | bool] = field(default_factory=dict)

    @property
    def is_verified(self) -> bool:
        """Whether the numbers come from the provider that the artifact is for."""
        return self.verified_on == self.provider


def versions() -> dict[str, str]:
    """Versions of everything that can change a number; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor as it names itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def to_json(value: object) -> Json:
    """Dataclasses, with their properties left out, tuples and mappings as plain JSON; no NaN, no infinity."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} has no JSON form")
