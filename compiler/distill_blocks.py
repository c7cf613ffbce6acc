"""Recovery after pruning, layer by layer: the student's layers learn their teacher's, without labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.distillation_cache import DistillationCache, Learned, distillation_cache
from onnxforge.compiler.distillation_losses import answer_loss
from onnxforge.compiler.distillation_text import DistillationText, TextBatch, distillation_text
from onnxforge.compiler.graph_facts import answer_of
from onnxforge.compiler.layer_distillation import LayerPair, Side, layer_pairs, learn_layer, weights_of
from onnxforge.compiler.step_progress import say
from onnxforge.compiler.stream_refit import last_product
from onnxforge.compiler.torch_graph import TorchGraph, Weights
from onnxforge.compiler.trainable_weights import put_back, trainable_weights
from onnxforge.compiler.training_run import Clock
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.unpruned import unpruned

WHAT = "block-wise distillation"
_TOKENS_A_STEP = 512
_PASSES = 4
"""Through each layer go the teacher's stream, the student's twice, and what is held out some times more."""
_MOVING = 0.5
"""Of all the time, what may go into that."""
_HALF_WAY = 0.6
"""Of the time that the streams take through a layer, what is over when its training begins."""


@dataclass(frozen=True)
class DistillBlocks(GraphPass):
    """Let each layer of a pruned model learn, in order, to give the stream that the unpruned model has there.

    ::

        teacher   ids ─ layer 0 ─── stream ─── layer 1 ─── stream ─ ...
                                       │ learned                │ learned
        student   ids ─ layer 0 ─── stream ─── layer 1 ─── stream ─ ...

    A layer reads the student's own stream, errors of the layers before it included, so that it learns to
    mend them too. Its last matrix is solved for at once (:mod:`onnxforge.compiler.stream_refit`); for the
    rest of the time all its matrices, biases and norms learn by AdamW. A table that embedding and head share
    does not. Two layers and the streams are in memory at a time, never a whole model.

    A layer stays as it was where held-out text shows no gain, and so does the whole model where its answers
    on that text came no closer to the teacher's. Interrupted, the next compile of the same goes on behind the
    last finished layer; see :mod:`onnxforge.compiler.distillation_cache`.

    Sources: Hinton et al. 2015 (1503.02531); layer by layer on the student's own stream as Frantar et al.
    2022, Optimal Brain Compression (2208.11580), and Li et al. 2021, BRECQ (2102.05426), do it.
    """

    summary: ClassVar[str] = "recovery: each pruned layer learns the stream of the unpruned model"

    minutes: float = 10.0
    """The most that it may take, over all interruptions."""
    train: bool = True
    """False: the last matrix of each layer is solved for, and nothing else learns; no clock decides."""
    samples: int = 128
    """Windows of a decoder. Shorter samples (sentences, records) are as many as give as many tokens."""
    tokens: int = 128
    """Tokens of a window; the most that a sentence may have."""
    learning_rate: float = 3e-4
    """Of AdamW, at its height."""
    seed: int = 0
    """Of the order of the batches, and of what calibration draws."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that teach nothing, and a model that was never pruned.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_options(self.text(), self.minutes, self.samples, self.tokens, self.learning_rate)
        teacher_of(self.text(), model)
        answer_of(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Train and write the weights back.

        Raises:
            PassRefused: a node cannot run in torch; no layers are found; too little calibration data.
        """
        teacher = teacher_of(self.text(), model)
        pairs = layer_pairs(model.graph, teacher.graph)
        rows = max(1, _TOKENS_A_STEP // self.tokens)
        text = distillation_text(
            model, self.samples, self.tokens, rows=rows, seed=self.seed, used_by=self.text()
        )
        cache = distillation_cache(model, teacher, self.text(), text.digest)
        with torch.enable_grad():
            trained, before, after = _Course(self, model, teacher, text, cache).through(pairs)
        gained = after < before
        outcome = "kept" if gained else "no gain: the weights stay as they were"
        notes.measured(WHAT, f"answers on held-out text, {before:.4g} before", after, outcome)
        if gained:
            put_back(model.graph, trained)
        return ir.passes.PassResult(model, modified=gained and bool(trained))


def check_options(step: str, minutes: float, samples: int, tokens: int, learning_rate: float) -> None:
    """Refuse numbers that teach nothing.

    Raises:
        PassRefused: which one.
    """
    if not (minutes > 0 and learning_rate > 0):
        raise PassRefused(f"{step}: minutes and learning_rate must be above 0")
    if samples < 2 or tokens < 2:
        raise PassRefused(f"{step}: needs at least 2 samples of 2 tokens, one of them held out")


def teacher_of(step: str, model: ir.Model) -> ir.Model:
    """The model before it was pruned.

    Raises:
        PassRefused: it never was.
    """
    teacher = unpruned(model)
    if teacher is None:
        raise PassRefused(
            f"{step}: nothing was pruned, so there is no better model to learn from. Put it behind "
            "`prune-mlp`, `prune-heads` or `prune-layers`, or leave it out."
        )
    return teacher


class _Course:
    """The way through all layers, with student, teacher, and the student as it was."""

    def __init__(
        self,
        step: DistillBlocks,
        model: ir.Model,
        teacher: ir.Model,
        text: DistillationText,
        cache: DistillationCache,
    ) -> None:
        self._step, self._cache = step, cache
        self._models = (model, teacher)
        self._take(text)
        self._student, self._teacher = Side(model.graph, 0), Side(teacher.graph, 1)
        self._untrained = Side(model.graph, 0)
        self._training = 0.0

    def through(self, pairs: tuple[LayerPair, ...]) -> tuple[dict[ir.Value, np.ndarray], float, float]:
        """The trained weights, and the distance of the answers on held-out text before and after."""
        trained: dict[ir.Value, np.ndarray] = {}
        clock = Clock(60 * self._step.minutes)
        if self._step.train:
            self._take(self._text.at_most(self._affordable(pairs, clock)))
        for index, pair in enumerate(pairs):
            spent = f", {clock.elapsed() / 60:.1f} of {self._step.minutes:g} min" if self._step.train else ""
            say(f"layer {index + 1} of {len(pairs)}{spent}")
            target = self._teacher.part(pair, also=self._sums(pair))
            self._teacher.move(target, pair, self._batches)
            as_it_was = self._untrained.part(pair)
            self._untrained.move(as_it_was, pair, self._held_out)
            del target, as_it_was
            trained |= self._layer(index, pair, clock, len(pairs))
        before = self._distance(self._untrained, pairs[-1])
        return trained, before, self._distance(self._student, pairs[-1])

    def _take(self, text: DistillationText) -> None:
        self._text = text
        self._batches: Mapping[int, TextBatch] = dict(enumerate((*text.learned, *text.held_out)))
        self._held_out = {i: batch for i, batch in self._batches.items() if i >= len(text.learned)}
        self._places = {id(batch): place for place, batch in self._batches.items()}

    def _affordable(self, pairs: tuple[LayerPair, ...], clock: Clock) -> int:
        """How many batches can go through all layers in the share of the time that is not for training."""
        first = self._teacher.part(pairs[0])
        begun = clock.elapsed()
        with torch.no_grad():
            self._teacher.run(first, pairs[0], 0, self._text.learned[0])
        each = (clock.elapsed() - begun) * len(pairs) * _PASSES
        return int(_MOVING * clock.seconds / max(each, 1e-9))

    def _sums(self, pair: LayerPair) -> list[ir.Value]:
        """The teacher's sum behind its last matrix, where both have one."""
        ours, theirs = (last_product(end) for end in pair.end)
        self._teacher.also = {}
        return [theirs.total] if ours is not None and theirs is not None else []

    def _layer(self, index: int, pair: LayerPair, clock: Clock, layers: int) -> dict[ir.Value, np.ndarray]:
        """Learn one layer, or take it from the cache, and let the student's stream go through it."""
        known = self._cache.load(f"layer{index}")
        weights = {value.name: value for value in trainable_weights(pair.nodes)}
        if known is not None and set(known.weights) <= set(weights):
            clock.spent += known.numbers["seconds"]
            self._training += known.numbers["seconds"]
            part = self._student.part(pair, list(weights.values()))
            with torch.no_grad():
                for value, parameter in part.parameters.items():
                    if (array := known.weights.get(value.name or "")) is not None:
                        parameter.copy_(torch.from_numpy(array))
        else:
            known, part = self._learned(index, pair, clock, layers)
        before, after = known.numbers["before"], known.numbers["after"]
        outcome = "learned" if after < before else "as it was"
        notes.measured(WHAT, f"{pair.end[0].name}, {before:.4g} before", after, outcome)
        self._student.move(part, pair, self._batches)
        return {weights[name]: array for name, array in known.weights.items()}

    def _learned(self, index: int, pair: LayerPair, clock: Clock, layers: int) -> tuple[Learned, TorchGraph]:
        """Train for an even share of what is left, once the streams' own way through the layers is paid."""
        begun = clock.elapsed()
        moving = (begun - self._training) / (index + _HALF_WAY)
        left = clock.left() / (layers - index) - moving if self._step.train else 0.0
        part, outcome = learn_layer(
            pair,
            self._student,
            self._teacher,
            self._text,
            self._places,
            clock=Clock(max(left, 0.0)),
            learning_rate=self._step.learning_rate,
            seed=self._step.seed + index,
        )
        gained = outcome.after < outcome.before
        numbers = {
            "before": outcome.before,
            "after": outcome.after,
            "seconds": clock.elapsed() - begun,
        }
        self._training += numbers["seconds"]
        learned = Learned(weights_of(part) if gained else {}, numbers)
        self._cache.save(f"layer{index}", learned)
        return learned, part

    def _distance(self, side: Side, last: LayerPair) -> float:
        """Of the answers that follow from ``side``'s stream, from the teacher's; the mean over batches."""
        store, total = Weights(), 0.0
        ends = [(side, 0), (self._teacher, 1)]
        outputs = [answer_of(self._models[which]) for _, which in ends]
        tails = [
            TorchGraph(owner.graph, [output], given=[*owner.graph.inputs, last.end[which]], weights=store)
            for (owner, which), output in zip(ends, outputs, strict=True)
        ]
        for place, batch in self._held_out.items():
            said = []
            for (owner, which), tail in zip(ends, tails, strict=True):
                stream = {last.end[which].name or "": owner.streams[place]}
                with torch.no_grad():
                    said.append(tail(batch.feeds(owner.graph) | stream)[0])
            total += float(answer_loss(outputs[0].name or "", said[0], said[1], batch.mask))
        return total / len(self._held_out)
