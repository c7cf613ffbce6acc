"""Run the graph as it is now over calibration text and leave the ranges of its cache on the presents."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.activations import watched_rows
from onnxforge.compiler.calibration_data import calibration_batches, check_samples
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.cache_range import annotate_cache

WHAT = "cache range"
_PRESENT = re.compile(r"present\.\d+\.(?:key|value)")


@dataclass(frozen=True)
class CalibrateCache(GraphPass):
    """Measure the largest magnitude of each channel of every layer's keys (rotated, as cached) and values.

    Nothing in the graph changes; `quantize-cache` reads what is left on the presents. Keys turn with their
    position, and the slowly turning channels reach their largest values late: windows are long rather than
    many.
    """

    summary: ClassVar[str] = "measure the ranges of cached keys and values on calibration text"

    samples: int = 4
    """Windows of calibration text."""
    tokens: int = 2048
    """Tokens of a window; no more than the model's context."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that measure nothing.

        Raises:
            PassRefused: ``samples`` or ``tokens`` is not positive.
        """
        check_samples(self.text(), self.samples, self.tokens)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate the presents; see :mod:`onnxforge.passes.cache_range`."""
        presents = [value for value in model.graph.outputs if _PRESENT.fullmatch(value.name or "")]
        if presents:
            for value, largest in zip(presents, self._measured(model, presents), strict=True):
                annotate_cache(value, largest)
                notes.match(WHAT, value.name)
        return ir.passes.PassResult(model, modified=False)

    def _measured(self, model: ir.Model, presents: list[ir.Value]) -> list[np.ndarray]:
        sizes = [_heads_and_width(value) for value in presents]
        largest = [np.zeros(size, np.float32) for size in sizes]
        work = calibration_batches(model, self.samples, self.tokens, used_by=self.text())
        for rows in watched_rows(model, presents, work):
            for seen, found, (heads, width) in zip(rows, largest, sizes, strict=True):
                # one sequence [1, KV, T, D] came as rows [KV * T, D]
                np.maximum(found, np.abs(seen.reshape(heads, -1, width)).max(axis=1), out=found)
        return largest


def _heads_and_width(present: ir.Value) -> tuple[int, int]:
    heads, width = (present.shape[1], present.shape[3]) if present.shape is not None else (None, None)
    if not isinstance(heads, int) or not isinstance(width, int):
        raise PassRefused(
            f"calibrate-cache: {present.name} is {present.shape}; its heads and head size must be numbers"
        )
    return heads, width
