"""Run the graph over calibration text, forth and back, and score every channel by the loss's slope."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.activations import multiplied
from onnxforge.compiler.calibration_data import CalibrationBatch, calibration_batches
from onnxforge.compiler.graph_facts import answer_of, graph_kind
from onnxforge.compiler.pruning_losses import next_token_loss, own_label_loss, random_direction_loss
from onnxforge.compiler.torch_feeds import torch_feeds
from onnxforge.compiler.torch_graph import TorchGraph
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.input_gradients import InputGradients, leave_gradients

WHAT = "input gradients"


@dataclass(frozen=True)
class MeasureGradients(GraphPass):
    """Leave on the input of every MatMul by a constant matrix the Taylor importance of its channels.

    Nothing in the graph changes. A decoder's loss is that of the next token. An encoder has no loss without
    labels, and the distance of an answer to itself no slope, so the slope of its sentence embedding along
    random directions is taken, ``directions`` of them for each sentence; of logits, the slope of labels that
    the model draws itself. See :mod:`onnxforge.compiler.pruning_losses`.

    The whole model runs in torch at once, in float32: its weights, and the activations of one batch.

    Sources: Molchanov et al. 2019 (1906.10771); Ma et al. 2023, LLM-Pruner (2305.11627).
    """

    summary: ClassVar[str] = "first-order scores of what matrices multiply, on calibration text (for pruning)"

    samples: int = 32
    """Windows of a decoder. Shorter samples (sentences, records) are as many as give as many tokens."""
    tokens: int = 256
    """Tokens of a window; the most that a sentence may have."""
    directions: int = 4
    """For encoders: how often each sentence is run, each time with another direction or drawn label."""
    seed: int = 0
    """Of those directions."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that measure nothing, and a graph that answers nothing known.

        Raises:
            PassRefused: what is wrong.
        """
        if self.samples < 1 or self.tokens < 2 or self.directions < 1:
            raise PassRefused(f"{self.text()}: needs at least 1 sample of 2 tokens, and 1 direction")
        answer_of(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Annotate the values; see :mod:`onnxforge.passes.input_gradients`.

        Raises:
            PassRefused: a node cannot run in torch, or a slope is NaN or infinite.
        """
        values = [value for value in multiplied(model.graph) if value.producer() is not None]
        answer = answer_of(model)
        graph = TorchGraph(model.graph, [answer, *values], leaves=values)
        totals = [np.zeros(0, np.float32)] * len(values)
        samples, rng = 0, torch.Generator().manual_seed(self.seed)
        decoder = graph_kind(model) == "decoder"
        for batch in calibration_batches(model, self.samples, self.tokens, used_by=self.text()):
            feeds = torch_feeds(model.graph, batch)
            for _ in range(1 if decoder else self.directions):
                said, *inside = graph(feeds)
                loss = _loss(said, batch, rng, decoder=decoder, logits=answer.name == "logits")
                for index, slopes in enumerate(_slopes(loss, inside)):
                    totals[index] = slopes + totals[index] if len(totals[index]) else slopes
                samples += len(batch.ids)
        for value, total in zip(values, totals, strict=True):
            self._leave(value, InputGradients(total / np.float32(samples), samples))
        return ir.passes.PassResult(model, modified=False)

    def _leave(self, value: ir.Value, found: InputGradients) -> None:
        if not np.isfinite(found.importance).all():
            raise PassRefused(
                f"{self.text()}: the slope at {value.name!r} is NaN or infinite on the calibration tokens; "
                "the model overflows, so its channels cannot be scored by it"
            )
        leave_gradients(value, found)
        notes.match(WHAT, value.name)


def _loss(
    said: torch.Tensor, batch: CalibrationBatch, rng: torch.Generator, *, decoder: bool, logits: bool
) -> torch.Tensor:
    """The sum of the samples' losses: they are independent, so each sample's slope is that of its own."""
    mask = torch.from_numpy(batch.mask)
    if decoder:
        return next_token_loss(said, torch.from_numpy(batch.ids), mask).sum()
    draw = own_label_loss if logits else random_direction_loss
    return draw(said, mask, rng).sum()


def _slopes(loss: torch.Tensor, values: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """For each value [B, ..., K]: ``|sum over tokens of x_k dL/dx_k|``, summed over the B samples.

    Zero for a value that the loss does not hang on.
    """
    found = []
    gradients = torch.autograd.grad(loss, values, allow_unused=True, materialize_grads=True)
    for value, gradient in zip(values, gradients, strict=True):
        products = (value.detach() * gradient).reshape(len(value), -1, value.shape[-1]).sum(dim=1)
        found.append(products.abs().sum(dim=0).numpy())
    return found
