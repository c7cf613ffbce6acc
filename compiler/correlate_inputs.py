"""Run the graph over calibration text and sum ``x x^T`` of everything that a matrix multiplies."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.activations import multiplied, watched_rows
from onnxforge.compiler.calibration_data import calibration_batches, check_samples
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.input_moments import InputMoments, leave_moments
from onnxforge.passes.matching import is_op, static_dim
from onnxforge.passes.option_checks import check_pattern
from onnxforge.passes.spilled import spilled
from onnxforge.passes.stored_blocks import stored_blocks
from onnxforge.passes.weight_inputs import weight_of

WHAT = "input moments"
_BYTES = 4


@dataclass(frozen=True)
class CorrelateInputs(GraphPass):
    """Leave on the input of every MatMul by a constant matrix the second moments that GPTQ and AWQ go by.

    Nothing in the graph changes. A value of K channels needs K x K sums: 14 MB a layer for SmolLM2-135M,
    700 MB for a model of 7B. So values are taken in rounds that fit ``memory_mb``, in graph order; each round
    runs the graph only as far as its last value. Finished sums lie in unnamed temporary files (``TMPDIR``
    says where), of which the passes read one at a time; the system frees them with the process, however it
    ends.

    Every round sees the float graph. Rounds of three layers that saw the earlier layers quantized, as the
    paper's do, gained nothing (docs/decisions/0013).
    """

    summary: ClassVar[str] = "second moments of what matrices multiply, on calibration text (for gptq, awq)"

    samples: int = 32
    """Windows of a decoder. Shorter samples (sentences, records) are as many as give as many tokens."""
    tokens: int = 512
    """Tokens of a window; the most that a sentence may have."""
    memory_mb: int = 4096
    """The most that the sums of one round may take. One value that needs more is a round by itself."""
    keep_bits: int = 0
    """Matrices whose source stores them in blocks of at most so many bits will be kept: not measured for."""
    skip: str = ""
    """A regular expression; MatMuls whose name or weight's name it finds are not measured for."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that measure nothing.

        Raises:
            PassRefused: ``samples``, ``tokens`` or ``memory_mb`` is not positive; ``skip`` cannot be read.
        """
        check_samples(self.text(), self.samples, self.tokens)
        if self.memory_mb < 1:
            raise PassRefused(f"{self.text()}: memory_mb is {self.memory_mb}; it must be at least 1")
        check_pattern(self.text(), "skip", self.skip)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate the values; see :mod:`onnxforge.passes.input_moments`.

        Raises:
            PassRefused: a value is NaN or infinite on the calibration tokens.
        """
        wanted = {node.inputs[0] for node in model.graph if self._measures(node)}
        watched = [
            value for value in multiplied(model.graph) if value in wanted and value.producer() is not None
        ]
        for values in self._rounds(watched):
            for value, found in zip(values, self._summed(model, values), strict=True):
                self._leave(value, found)
        return ir.passes.PassResult(model, modified=False)

    def _measures(self, node: ir.Node) -> bool:
        weight = weight_of(node) if is_op(node, "MatMul") else None
        if weight is None:
            return False
        if self.skip and any(re.search(self.skip, name or "") for name in (weight.value.name, node.name)):
            return False
        found = stored_blocks(weight.tensor, transposed=weight.transposed)
        return found is None or found.form[0] > self.keep_bits

    def _rounds(self, values: Sequence[ir.Value]) -> Iterator[list[ir.Value]]:
        chosen: list[ir.Value] = []
        room = self.memory_mb << 20
        for value in values:
            size = _BYTES * (_width(value) ** 2)
            if chosen and size > room:
                yield chosen
                chosen, room = [], self.memory_mb << 20
            chosen.append(value)
            room -= size
        if chosen:
            yield chosen

    def _summed(self, model: ir.Model, values: Sequence[ir.Value]) -> list[InputMoments]:
        sums = [np.zeros((_width(value),) * 2, dtype=np.float32) for value in values]
        counts = [0] * len(values)
        work = calibration_batches(model, self.samples, self.tokens, used_by=self.text())
        for rows in watched_rows(model, values, work):
            for index, seen in enumerate(rows):
                sums[index] += seen.T @ seen
                counts[index] += len(seen)
            del rows, seen  # before the next batch runs: never two batches at once
        return [InputMoments(spilled(total), count) for total, count in zip(sums, counts, strict=True)]

    def _leave(self, value: ir.Value, found: InputMoments) -> None:
        if not np.isfinite(found.powers()).all():
            raise PassRefused(
                f"{self.text()}: {value.name!r} is NaN or infinite on the calibration tokens; "
                "the model overflows, so no rounding can be fitted to it"
            )
        leave_moments(value, found)
        notes.match(WHAT, value.name)
        width = len(found.products)
        if found.tokens < width:
            reason = (
                f"{found.tokens} tokens for {width} channels: its moments are of low rank; take more samples"
            )
            notes.near_miss(WHAT, value.name, reason)


def _width(value: ir.Value) -> int:
    """K, which a MatMul's matrix tells where the value's own shape does not."""
    known = static_dim(value, -1)
    if known is not None:
        return known
    reader = next(use.node for use in value.uses() if is_op(use.node, "MatMul") and weight_of(use.node))
    weight = weight_of(reader)
    assert weight is not None
    return weight.size[1]
