"""One layer after the other: each of the student's learns to give the stream that the teacher's gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.distillation_losses import stream_error
from onnxforge.compiler.distillation_text import DistillationText, TextBatch
from onnxforge.compiler.torch_graph import TorchGraph
from onnxforge.compiler.trainable_weights import trainable_weights
from onnxforge.compiler.training_run import Clock, Outcome, train
from onnxforge.passes.base import PassRefused
from onnxforge.passes.layers import LayersNotFound, find_layers

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
    pairs: list[LayerPair] = []
    nodes: list[ir.Node] = []
    for layer in layers:
        nodes += layer.whole.nodes
        end = layer.whole.end
        if end.name in theirs:
            start = pairs[-1].end if pairs else None
            pairs.append(LayerPair(start, (end, theirs[end.name]), tuple(nodes)))
            nodes = []
    if not pairs:
        raise PassRefused(
            f"No layer by layer distillation: the unpruned model has no value {layers[-1].whole.end.name!r}, "
            "in which the last layer ends, nor the ends of the others. Its names were changed since."
        )
    return tuple(pairs)


class Side:
    """Student or teacher, with the stream that has reached the layer in hand, batch by batch."""

    def __init__(self, graph: ir.Graph, which: int) -> None:
        self.graph = graph
        self._which = which
        self.streams: Streams = {}

    def part(self, pair: LayerPair, leaves: Sequence[ir.Value] = ()) -> TorchGraph:
        """The layer in torch, from the stream to the stream."""
        given = [*self.graph.inputs, *([pair.start[self._which]] if pair.start is not None else [])]
        return TorchGraph(self.graph, [pair.end[self._which]], given=given, leaves=leaves)

    def run(self, part: TorchGraph, pair: LayerPair, place: int, batch: TextBatch) -> torch.Tensor:
        """The layer's end for one batch."""
        feeds = batch.feeds(self.graph)
        if pair.start is not None:
            feeds[pair.start[self._which].name or ""] = self.streams[place]
        return part(feeds)[0]

    def move(self, part: TorchGraph, pair: LayerPair, batches: Mapping[int, TextBatch]) -> None:
        """Let the streams of all batches go through the layer."""
        with torch.no_grad():
            self.streams = {place: self.run(part, pair, place, batch) for place, batch in batches.items()}


def learn_layer(
    pair: LayerPair,
    student: Side,
    targets: Streams,
    text: DistillationText,
    places: Mapping[int, int],
    *,
    clock: Clock,
    learning_rate: float,
    seed: int,
) -> tuple[TorchGraph, Outcome]:
    """Train the student's layer, on its own stream, towards ``targets``: the teacher's stream behind it.

    ``places`` tells the place of a batch by its id. The layer comes back trained, or as it was.
    """
    part = student.part(pair, trainable_weights(pair.nodes))

    def objective(batch: TextBatch) -> torch.Tensor:
        place = places[id(batch)]
        said = student.run(part, pair, place, batch)
        return stream_error(said, targets[place], batch.mask.bool())

    parameters = list(part.parameters.values())
    looks = 4
    outcome = train(
        parameters,
        objective,
        text.learned,
        text.held_out,
        clock=clock,
        learning_rate=learning_rate,
        looks=looks,
        seed=seed,
    )
    return part, outcome


def weights_of(part: TorchGraph) -> dict[str, np.ndarray]:
    """The parameters by the names of their initializers."""
    return {value.name or "": tensor.detach().numpy() for value, tensor in part.parameters.items()}
