"""Recovery after pruning, the whole model at once: the student learns its teacher's answers."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import torch

from onnxforge.compiler.distill_blocks import check_options, teacher_of
from onnxforge.compiler.distillation_cache import DistillationCache, Learned, distillation_cache
from onnxforge.compiler.distillation_losses import answer_loss
from onnxforge.compiler.distillation_text import DistillationText, TextBatch, distillation_text
from onnxforge.compiler.graph_facts import answer_of
from onnxforge.compiler.step_progress import say
from onnxforge.compiler.torch_graph import TorchGraph, Weights
from onnxforge.compiler.trainable_weights import put_back, trainable_weights
from onnxforge.compiler.training_run import Clock, train
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.matching import static_dim

WHAT = "distillation on logits"
_TOKENS_A_STEP = 512
_PART = "best"


@dataclass(frozen=True)
class DistillLogits(GraphPass):
    """Let a pruned model learn to answer as the unpruned one does.

    Decoders and classifiers learn the teacher's distribution, KL(teacher || student) with both softened by
    ``temperature``; encoders the hidden states, token by token, and the direction of the pooled sentence.
    All matrices, biases and norms learn; embeddings and the head, which pruning leaves alone, do not.

    Both models are in memory whole, with AdamW's two moments for each weight: about seven times the
    student. What it ends with is the best of its looks at held-out text, and nothing changes where none was
    better than the start. The best state so far is on disk, and an interrupted compile goes on from it, with
    the minutes that were left; see :mod:`onnxforge.compiler.distillation_cache`.

    Source: Hinton et al. 2015 (1503.02531).
    """

    summary: ClassVar[str] = "recovery: the pruned model learns the answers of the unpruned one"

    minutes: float = 10.0
    """The most that it may take, over all interruptions."""
    samples: int = 256
    """Windows of a decoder. Shorter samples (sentences, records) are as many as give as many tokens."""
    tokens: int = 128
    """Tokens of a window; the most that a sentence may have."""
    learning_rate: float = 2e-5
    """Of AdamW, at its height."""
    temperature: float = 1.0
    """Softens both distributions where it is above 1."""
    seed: int = 0
    """Of the order of the batches, and of what calibration draws."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that teach nothing, and a model that was never pruned.

        Raises:
            PassRefused: what is wrong, and what to write instead.
        """
        check_options(self.text(), self.minutes, self.samples, self.tokens, self.learning_rate)
        if not self.temperature > 0:
            raise PassRefused(f"{self.text()}: temperature must be above 0")
        teacher_of(self.text(), model)
        answer_of(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Train and write the weights back.

        Raises:
            PassRefused: a node cannot run in torch; too little calibration data.
        """
        teacher = teacher_of(self.text(), model)
        rows = max(1, _TOKENS_A_STEP // self.tokens)
        text = distillation_text(
            model, self.samples, self.tokens, rows=rows, seed=self.seed, used_by=self.text()
        )
        cache = distillation_cache(model, teacher, self.text(), text.digest)
        with torch.enable_grad():
            learned = _Lesson(self, model, teacher, cache).learn(text)
        before, after = learned.numbers["before"], learned.numbers["after"]
        gained = after < before
        outcome = "kept" if gained else "no gain: the weights stay as they were"
        notes.measured(WHAT, f"answers on held-out text, {before:.4g} before", after, outcome)
        if gained:
            by_name = {value.name: value for value in model.graph.initializers.values()}
            put_back(model.graph, {by_name[name]: array for name, array in learned.weights.items()})
        return ir.passes.PassResult(model, modified=gained)


class _Lesson:
    """Student and teacher in torch."""

    def __init__(
        self, step: DistillLogits, model: ir.Model, teacher: ir.Model, cache: DistillationCache
    ) -> None:
        self._step, self._cache = step, cache
        self._graphs = (model.graph, teacher.graph)
        answers = answer_of(model), answer_of(teacher)
        self._answer = answers[0].name or ""
        store = Weights()
        self._student = TorchGraph(
            model.graph, [answers[0]], leaves=_learning(model.graph, answers[0]), weights=store
        )
        self._teacher = TorchGraph(teacher.graph, [answers[1]], weights=store)

    def learn(self, text: DistillationText) -> Learned:
        """The best weights by name, and the held-out loss ``before`` and ``after``."""
        known = self._restored()
        clock = Clock(60 * self._step.minutes, known.numbers["seconds"] if known is not None else 0.0)
        best = known

        def looked(found: float, better: bool) -> None:
            nonlocal best
            if best is None:
                best = Learned({}, {"before": found, "after": found})
            elif better:
                best = self._state(best.numbers["before"], found, clock)
                self._cache.save(_PART, best)
            say(self._progress(clock, best))

        def objective(batch: TextBatch) -> torch.Tensor:
            say(self._progress(clock, best))
            return self._loss(batch)

        if clock.left() > 0:
            train(
                list(self._student.parameters.values()),
                objective,
                text.learned,
                text.held_out,
                clock=clock,
                learning_rate=self._step.learning_rate,
                looks=max(4, round(self._step.minutes)),
                seed=self._step.seed,
                on_look=looked,
            )
        assert best is not None  # the first look is at the start
        done = Learned(best.weights, {**best.numbers, "seconds": max(clock.elapsed(), clock.seconds)})
        self._cache.save(_PART, done)
        return done

    def _loss(self, batch: TextBatch) -> torch.Tensor:
        with torch.no_grad():
            (taught,) = self._teacher(batch.feeds(self._graphs[1]))
        (said,) = self._student(batch.feeds(self._graphs[0]))
        return answer_loss(self._answer, said, taught, batch.mask, self._step.temperature)

    def _state(self, before: float, after: float, clock: Clock) -> Learned:
        weights = {
            value.name or "": parameter.detach().numpy().copy()
            for value, parameter in self._student.parameters.items()
        }
        return Learned(weights, {"before": before, "after": after, "seconds": clock.elapsed()})

    def _restored(self) -> Learned | None:
        """The state of an interrupted run, put into the student."""
        known = self._cache.load(_PART)
        names = {value.name for value in self._student.parameters}
        if known is None or not set(known.weights) <= names:
            return None
        with torch.no_grad():
            for value, parameter in self._student.parameters.items():
                if (array := known.weights.get(value.name or "")) is not None:
                    parameter.copy_(torch.from_numpy(array))
        return known

    def _progress(self, clock: Clock, best: Learned | None) -> str:
        loss = f", {best.numbers['after']:.4g} on held-out text" if best is not None else ""
        return f"{clock.elapsed() / 60:.1f} of {self._step.minutes:g} min{loss}"


def _learning(graph: ir.Graph, answer: ir.Value) -> tuple[ir.Value, ...]:
    """What learns: all but the head, the product that has a column for each entry of the logits."""
    entries = static_dim(answer, -1) if answer.name == "logits" else None
    nodes = [
        node
        for node in graph
        if node.op_type not in ("MatMul", "Gemm") or entries is None or _columns(node) != entries
    ]
    return trainable_weights(nodes)


def _columns(node: ir.Node) -> int | None:
    return static_dim(node.outputs[0], -1)
