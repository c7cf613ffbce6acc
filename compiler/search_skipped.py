"""Which layers a decoder leaves out to draft for itself: a search on calibration text."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.compiler.calibration_data import calibration_batches
from onnxforge.compiler.graph_facts import graph_kind
from onnxforge.compiler.skipping_session import SkippingSession, skipping_session
from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.residual_branches import ResidualBranch, residual_branches
from onnxforge.passes.skip_layers import CHOSEN, LAYER_SKIP, mark_skipped, skippable

_MOST_GUESSES = 8
_ROUNDS = 6
_NEIGHBOURS = 4


@dataclass(frozen=True)
class SearchSkipped(GraphPass):
    """Mark the residual branches (attentions, MLPs) that ``skip-layers`` is to leave out of drafts.

    First each branch is left out alone, and how often the model then still chooses the same token is what it
    can do without it. By that, per byte of weights saved, they are ranked; the best beginning of the ranking
    is improved by exchanging single branches while that gains. What is compared is the expected speed of
    drafting: agreement ``a`` makes (1 - a^(k+1)) / (1 - a) tokens of k guesses (Leviathan et al. 2022), which
    cost k times the bytes of what stays, and a step over k + 1 rows. Bytes stand for time, so that equal
    models give equal choices on every machine; the proof then measures the real speed, and decides by it.

    Every measured set is in the report. Run after all that changes the model's numbers.

    Source: Zhang et al. 2023, Draft & Verify (2309.08168), who search by Bayesian optimisation.
    """

    summary: ClassVar[str] = "choose the attentions and MLPs that drafts leave out, by what they agree to"

    tokens: int = 256
    """The text that is read."""
    samples: int = 2
    alone: int = 16
    """Places of each sample at which a branch left out alone is judged."""
    together: int = 48
    """The same for several branches."""
    row_cost: float = 0.07
    """What one more row adds to a step that verifies, in steps of one row (int8 on a CPU, measured)."""

    def requires(self, model: ir.Model) -> None:
        """Refuse what cannot be searched.

        Raises:
            PassRefused: an encoder, numbers out of range, no branch that can be left out.
        """
        if graph_kind(model) != "decoder":
            raise PassRefused(f"{self.text()}: only a decoder drafts, and this is none. Leave the step out.")
        if not (0 < self.alone <= self.tokens and 0 < self.together <= self.tokens and self.samples > 0):
            raise PassRefused(f"{self.text()}: needs 1 sample and 1 to {self.tokens} places of it.")
        if not skippable(model.graph):
            raise PassRefused(f"{self.text()}: no residual branch of this graph can be left out.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Mark the Adds; see :func:`onnxforge.passes.skip_layers.mark_skipped`."""
        numbers = skippable(model.graph)
        branches = residual_branches(model.graph)
        weights = _Weights(model.graph, [branches[number] for number in numbers])
        with skipping_session(model, None) as (graph, switches):
            work = calibration_batches(model, self.samples, self.tokens, used_by=self.text())
            texts = [SkippingSession(graph, switches, batch.ids[0]) for batch in work]
            found = _search(self, texts, weights)
        best = max(found, key=lambda skipped: (found[skipped].speed, -len(skipped)))
        for skipped, trial in found.items():
            name = "+".join(str(numbers[i]) for i in skipped)
            outcome = CHOSEN if skipped == best else "tried"
            notes.measured(LAYER_SKIP, f"{name}: {_promise(trial)}", trial.agreement, outcome)
        for i in best:
            mark_skipped(branches[numbers[i]].join, f"agreement {found[best].agreement:.2f}")
        return ir.passes.PassResult(model, modified=False)


@dataclass(frozen=True)
class _Trial:
    agreement: float
    cost: float
    """Of a guess, in steps of the whole model."""
    guesses: int
    """The best number of them."""
    speed: float
    """Expected, over plain decoding."""


def _promise(trial: _Trial) -> str:
    guesses = f"{trial.guesses} {'guess' if trial.guesses == 1 else 'guesses'}"
    return f"reads {trial.cost:.2f} of the weights, {trial.speed:.2f}x expected with {guesses} a step"


class _Weights:
    """The bytes that a step reads, in all and by branch."""

    def __init__(self, graph: ir.Graph, branches: Sequence[ResidualBranch]) -> None:
        self.branches = [_bytes_of(branch.nodes) for branch in branches]
        gathered = {value for node in graph if node.op_type == "Gather" for value in node.inputs}
        every = [node for node in graph if node.op_type != "Gather"]
        self._all = max(_bytes_of(every, ignored=gathered), sum(self.branches), 1)

    def share(self, skipped: Sequence[int]) -> float:
        """What is left of the bytes without the branches ``skipped``."""
        return 1 - sum(self.branches[i] for i in skipped) / self._all


def _bytes_of(nodes: Sequence[ir.Node], ignored: Collection[ir.Value | None] = ()) -> int:
    """Of the distinct weights that ``nodes`` read, those included that they read through other nodes."""
    tensors: dict[int, int] = {}
    pending, seen = [value for node in nodes for value in node.inputs], set(ignored)
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if value.const_value is not None:
            tensors[id(value.const_value)] = value.const_value.nbytes
        elif node is not None and node.op_type == "DequantizeLinear":
            pending += node.inputs
    return sum(tensors.values())


def _search(
    step: SearchSkipped, texts: Sequence[SkippingSession], weights: _Weights
) -> Mapping[tuple[int, ...], _Trial]:
    """Every set of branches that was judged on ``together`` places, and how it did."""
    count = len(weights.branches)
    few, many = (_evenly(step.tokens, places) for places in (step.alone, step.together))
    alone = [_agreement(texts, (i,), few) for i in range(count)]
    order = sorted(range(count), key=lambda i: ((1 - alone[i]) / weights.branches[i], i))
    found: dict[tuple[int, ...], _Trial] = {}

    def judged(skipped: Sequence[int]) -> _Trial:
        key = tuple(sorted(skipped))
        if key not in found:
            found[key] = _trial(_agreement(texts, key, many), weights.share(key), step.row_cost)
        return found[key]

    sizes = sorted({max(1, round(count * share / 20)) for share in range(1, 11)})
    best = max((order[:size] for size in sizes), key=lambda skipped: judged(skipped).speed)
    for _ in range(_ROUNDS):
        outside = [i for i in order if i not in best][:_NEIGHBOURS]
        inside = [i for i in reversed(order) if i in best][:_NEIGHBOURS] if len(best) > 1 else []
        near = [[*best, i] for i in outside] + [[j for j in best if j != i] for i in inside]
        next_best = max(near, key=lambda skipped: judged(skipped).speed)
        if judged(next_best).speed <= judged(best).speed:
            break
        best = next_best
    return found


def _agreement(texts: Sequence[SkippingSession], skipped: Sequence[int], places: Sequence[int]) -> float:
    shares = [text.agreement(skipped, [p for p in places if p < len(text.choices)]) for text in texts]
    return sum(shares) / len(shares)


def _trial(agreement: float, cost: float, row_cost: float) -> _Trial:
    best = _Trial(agreement, cost, 1, 0.0)
    for guesses in range(1, _MOST_GUESSES + 1):
        tokens = sum(agreement**power for power in range(guesses + 1))
        verifying = 1 + row_cost * (2 * math.ceil((guesses + 1) / 2) - 1)
        speed = tokens / (guesses * cost + verifying)
        if speed > best.speed:
            best = _Trial(agreement, cost, guesses, speed)
    return best


def _evenly(length: int, count: int) -> list[int]:
    """Places of a text, not its first ones: there hardly anything has been read."""
    return [(length * (place + 1)) // (count + 1) for place in range(count)]
