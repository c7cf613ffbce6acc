"""One layer after the other: each of the student's learns to give the stream that the teacher's gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.distillation_losses import stream_error
from onnxforge.compiler.distillation_text import DistillationText, TextBatch
from onnxforge.compiler.stream_refit import LastProduct, Residual, best_change, last_product
from onnxforge.compiler.torch_graph import TorchGraph
from onnxforge.compiler.trainable_weights import trainable_weights
from onnxforge.compiler.training_run import Clock, Outcome, held_out_loss, train
from onnxforge.passes.base import PassRefused
from onnxforge.passes.layers import LayersNotFound, find_layers

_LOOKS = 4
Streams = dict[int, torch.Tensor]
"""By place of the batch: what flows between two layers, float32 [B, S, H]. Empty in front of the first."""


@dataclass(frozen=True)
class LayerPair:
    """A stretch of the student and its counterpart, between two values that both graphs have by name."""

    start: tuple[ir.Value, ir.Value] | None
    """Of student and teacher; None for the first, which begins with the ids."""
    end: tuple[ir.Value, ir.Value]
    nodes: tuple[ir.Node, ...]
    """The student's."""


def layer_pairs(student: ir.Graph, teacher: ir.Graph) -> tuple[LayerPair, ...]:
    """The layers of ``student`` in order. One whose end the teacher lacks goes together with the next.

    Where layers are gone behind one that stays, its counterpart ends behind them: it learns to do their work
    too. So a cut is mended on both sides (before it as Shopkhoev et al. 2025, ReplaceMe, 2505.02819).

    Raises:
        PassRefused: the student falls into no layers, or none ends in a value that the teacher has.
    """
    try:
        layers = find_layers(student)
    except LayersNotFound as problem:
        raise PassRefused(
            f"No layer by layer distillation: {problem}. `distill-logits` takes the model as a whole."
        ) from problem
    theirs = {value.name: value for node in teacher for value in node.outputs}
    ours: list[ir.Value] = []
    stretches: list[tuple[ir.Node, ...]] = []
    nodes: tuple[ir.Node, ...] = ()
    for layer in layers:
        nodes += layer.whole.nodes
        if layer.whole.end.name in theirs:
            ours.append(layer.whole.end)
            stretches.append(nodes)
            nodes = ()
    if not ours:
        raise PassRefused(
            f"No layer by layer distillation: the unpruned model has no value {layers[-1].whole.end.name!r}, "
            "in which the last layer ends, nor the ends of the others. Its names were changed since."
        )
    ends = list(zip(ours, _behind_gaps([theirs[end.name] for end in ours], teacher), strict=True))
    starts = [None, *ends[:-1]]
    return tuple(LayerPair(*parts) for parts in zip(starts, ends, stretches, strict=True))


def _behind_gaps(ends: Sequence[ir.Value], teacher: ir.Graph) -> list[ir.Value]:
    """For each of the teacher's ``ends`` the stream that the next begins with; for the last, the very end."""
    try:
        every = [layer.whole.end for layer in find_layers(teacher)]
    except LayersNotFound:
        return list(ends)
    places = {value: place for place, value in enumerate(every)}
    known = [places.get(end) for end in ends]
    following = [*known[1:], len(every)]
    return [
        end if here is None or after is None else every[after - 1]
        for end, here, after in zip(ends, known, following, strict=True)
    ]


class Side:
    """Student or teacher, with the stream that has reached the layer in hand, batch by batch."""

    def __init__(self, graph: ir.Graph, which: int) -> None:
        self.graph = graph
        self._which = which
        self.streams: Streams = {}
        self.also: Streams = {}
        """What else the last layer was asked for."""

    def part(
        self, pair: LayerPair, leaves: Sequence[ir.Value] = (), also: Sequence[ir.Value] = ()
    ) -> TorchGraph:
        """The layer in torch, from the stream to the stream, and to values inside it that are wanted too."""
        given = [*self.graph.inputs, *([pair.start[self._which]] if pair.start is not None else [])]
        return TorchGraph(self.graph, [pair.end[self._which], *also], given=given, leaves=leaves)

    def run(
        self, part: TorchGraph, pair: LayerPair, place: int, batch: TextBatch
    ) -> tuple[torch.Tensor, ...]:
        """The layer's end, and what else was wanted, for one batch."""
        feeds = batch.feeds(self.graph)
        if pair.start is not None:
            feeds[pair.start[self._which].name or ""] = self.streams[place]
        return part(feeds)

    def move(self, part: TorchGraph, pair: LayerPair, batches: Mapping[int, TextBatch]) -> None:
        """Let the streams of all batches go through the layer."""
        streams: Streams = {}
        with torch.no_grad():
            for place, batch in batches.items():
                streams[place], *also = self.run(part, pair, place, batch)
                self.also |= {place: also[0]} if also else {}
        self.streams = streams


def learn_layer(
    pair: LayerPair,
    student: Side,
    teacher: Side,
    text: DistillationText,
    places: Mapping[int, int],
    *,
    clock: Clock,
    learning_rate: float,
    seed: int,
) -> tuple[TorchGraph, Outcome]:
    """Train the student's layer, on its own stream, towards the stream that the teacher has behind it.

    First its last matrix is solved for (:mod:`onnxforge.compiler.stream_refit`), then all of it is trained.
    ``places`` tells the place of a batch by its id. The layer comes back trained, or as it was.
    """
    product = last_product(pair.end[0])
    inside = [product.data, product.total] if product is not None else []
    part = student.part(pair, trainable_weights(pair.nodes), inside)

    def objective(batch: TextBatch) -> torch.Tensor:
        place = places[id(batch)]
        said = student.run(part, pair, place, batch)[0]
        return stream_error(said, teacher.streams[place], batch.mask.bool())

    before = held_out_loss(objective, text.held_out)
    if product is not None and product.weight in part.parameters and len(teacher.also) == len(places):
        halves = [
            _residual(part, pair, student, teacher, {places[id(batch)]: batch for batch in batches})
            for batches in (text.learned, text.held_out)
        ]
        _refit(part, product, *halves)
    outcome = train(
        list(part.parameters.values()),
        objective,
        text.learned,
        text.held_out,
        clock=clock,
        learning_rate=learning_rate,
        looks=_LOOKS,
        seed=seed,
    )
    return part, replace(outcome, before=before)


def _refit(part: TorchGraph, product: LastProduct, learned: Residual, held_out: Residual) -> None:
    """Change the last matrix as held-out text likes it best."""
    change = best_change(learned, held_out)
    if change is None:
        return
    added = torch.from_numpy((change.T if product.transposed else change).astype(np.float32))
    with torch.no_grad():
        part.parameters[product.weight].add_(added)


def _residual(
    part: TorchGraph, pair: LayerPair, student: Side, teacher: Side, batches: Mapping[int, TextBatch]
) -> Residual:
    """What is left to learn in the sum behind the last matrix, over ``batches``."""
    found: Residual | None = None
    for place, batch in batches.items():
        with torch.no_grad():
            _, data, total = student.run(part, pair, place, batch)
        real = batch.mask.bool()
        rows = [tensor[real].numpy() for tensor in (data, total, teacher.also[place])]
        if found is None:
            sizes = rows[0].shape[1], rows[1].shape[1]
            found = Residual(np.zeros((sizes[0],) * 2), np.zeros(sizes))
        found.add(*rows)
    assert found is not None  # there is a batch to learn from, and one that is held out
    return found


def weights_of(part: TorchGraph) -> dict[str, np.ndarray]:
    """The parameters by the names of their initializers."""
    return {value.name or "": tensor.detach().numpy() for value, tensor in part.parameters.items()}
