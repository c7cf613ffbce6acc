"""How far a model is by now from what it was before pruning, and what that has gained: nothing changes."""

from dataclasses import dataclass
from typing import ClassVar, Final

import onnx_ir as ir

from onnxforge.compiler.calibration_data import check_samples, trial_batches
from onnxforge.compiler.pruning_trial import compared, contestant
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.unpruned import unpruned

PRUNING: Final = "distance from the unpruned model"
"""What the measures speak of."""


@dataclass(frozen=True)
class CompareUnpruned(GraphPass):
    """Run the model beside the unpruned one on calibration text, for the report.

    ``--prune`` puts one behind every step that changes numbers, so that the report can say what each of them
    cost and gained.
    """

    summary: ClassVar[str] = "measure how far the model is from the unpruned one, for the report"

    samples: int = 4
    """Windows of a decoder, eights of sentences of an encoder."""
    tokens: int = 256

    def requires(self, model: ir.Model) -> None:
        """Refuse options that measure nothing.

        Raises:
            PassRefused: no sample, or samples of less than two tokens.
        """
        check_samples(self.text(), self.samples, self.tokens)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Measure; where nothing was pruned there is nothing to compare."""
        whole = unpruned(model)
        if whole is not None:
            work = trial_batches(model, self.samples, self.tokens, used_by=self.text())
            with contestant(whole) as theirs, contestant(model) as ours:
                found = compared(theirs, ours, work)
            gained = f"{found.size:.3f}x of the bytes, {found.latency:.2f}x of the time of a step"
            notes.measured(PRUNING, "the whole model", found.damage, gained)
        return ir.passes.PassResult(model, modified=False)
