"""Run the graph as it is now over calibration text and leave what was seen on its values."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.compiler.activation_tally import ActivationTally, NotFinite
from onnxforge.compiler.activations import multiplied, watched_rows
from onnxforge.compiler.calibration_data import calibration_batches, check_samples
from onnxforge.compiler.calibration_use import CalibrationUse
from onnxforge.compiler.clipping import METHODS
from onnxforge.passes import notes
from onnxforge.passes.activation_range import annotate
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.option_checks import check_choice

WHAT = "activation range"
_FEWEST = 8
"""Different tokens that ranges have to rest on, at least."""


@dataclass(frozen=True)
class Calibrate(GraphPass):
    """Measure the input of every MatMul by a constant matrix: the range of each channel, and what is typical.

    Nothing in the graph changes. The graph runs in ONNX Runtime on the CPU, window after window, and each
    window's values are reduced at once, so that memory does not grow with the number of samples.

    ``method`` chooses what a grid over the whole tensor is to cover: everything seen (``min-max``), all but
    the outer share (``percentile``), what keeps the distribution (``entropy``), or what rounds with the least
    squared error (``mse``); see :mod:`onnxforge.compiler.clipping`. The default clips nothing: a model with
    massive activations loses more by it than the finer grid wins (docs/decisions).
    """

    summary: ClassVar[str] = "measure the ranges of activations on calibration text"

    method: str = "min-max"
    """``min-max``, ``percentile``, ``entropy`` or ``mse``."""
    percentile: float = 99.99
    """The share of elements, in percent, that ``percentile`` keeps: half of the rest is cut off each end."""
    samples: int = 8
    """Windows of a decoder. Shorter samples (sentences, records) are as many as give as many tokens."""
    tokens: int = 512
    """Tokens of a window; the most that a sentence may have."""
    seed: int = 0
    """Of which records are drawn, and of what ``self`` samples."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that measure nothing.

        Raises:
            PassRefused: an option is out of its range.
        """
        check_choice(self.text(), "method", self.method, METHODS)
        if not 50 < self.percentile <= 100:
            raise PassRefused(
                f"{self.text()}: percentile is {self.percentile}; it must be above 50, up to 100"
            )
        check_samples(self.text(), self.samples, self.tokens)
        if self.seed < 0:
            raise PassRefused(f"{self.text()}: seed is {self.seed}; it must not be negative")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate the values; see :mod:`onnxforge.passes.activation_range`.

        Raises:
            PassRefused: the data holds hardly any different tokens, or a value is NaN or infinite on them.
        """
        watched = multiplied(model.graph)
        if not watched:
            return ir.passes.PassResult(model, modified=False)
        work = calibration_batches(model, self.samples, self.tokens, seed=self.seed, used_by=self.text())
        self._refuse_monotony(work.use)
        tallies = [ActivationTally(self.method, self.percentile) for _ in watched]
        for rows in watched_rows(model, watched, work):
            for value, tally, seen in zip(watched, tallies, rows, strict=True):
                try:
                    tally.add(seen)
                except NotFinite as error:
                    raise PassRefused(f"{self.text()}: {value.name!r} holds {error}") from error
            del rows, seen  # before the next batch runs: never two batches at once
        for value, tally in zip(watched, tallies, strict=True):
            annotate(value, tally.result())
            notes.match(WHAT, value.name)
        return ir.passes.PassResult(model, modified=False)

    def _refuse_monotony(self, use: CalibrationUse) -> None:
        if use.distinct < min(_FEWEST, use.tokens):
            raise PassRefused(
                f"{self.text()}: {use.source} gives {use.tokens} tokens, and only {use.distinct} different "
                "ones: the tokenizer knows none of its words, or it says one thing again and again. Ranges "
                "of that would clip every other text. Name one that the model is for: `--calibration FILE`."
            )
