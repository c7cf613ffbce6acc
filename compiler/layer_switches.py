"""One graph in which every layer can be left out, each by a switch of its own.

::

    x ──┬─ layer i ─┐
        └───────────┴─ Where(switch[i], x, layer i) ─ x'

``switch`` bool [layers, B, 1, 1] is an input, so that one session answers what every choice of layers does,
and one run answers it for B choices at once. A layer that is left out is computed all the same.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.sensitivity import SwitchSession, switch_session
from onnxforge.compiler.switched_graph import SWITCH
from onnxforge.passes.constants import add_array
from onnxforge.passes.layers import LayerUnit, Span, find_layers, spans_of
from onnxforge.passes.matching import redirect


@contextmanager
def layer_session(model: ir.Model, unit: LayerUnit) -> Iterator[SwitchSession]:
    """A session over ``model`` with a switch for each of its layers (attentions, MLPs), in their order.

    :meth:`SwitchSession.divergence` then says how far the model without some of them is from the whole one.

    Raises:
        LayersNotFound: the graph does not fall into layers.
        PassRefused: it answers neither logits nor hidden states.
    """
    copy = model.clone()
    spans = spans_of(find_layers(copy.graph), unit)
    switch = ir.Value(
        name=SWITCH,
        shape=ir.Shape([len(spans), "batch", 1, 1]),
        type=ir.TensorType(ir.DataType.BOOL),
    )
    copy.graph.inputs.append(switch)
    _put_switches(copy.graph, spans, switch)
    with switch_session(copy) as session:
        yield session


def _put_switches(graph: ir.Graph, spans: Sequence[Span], switch: ir.Value) -> None:
    stream: dict[ir.Value, ir.Value] = {}
    for number, span in enumerate(spans):
        index = add_array(graph, f"{SWITCH}.{number}", np.array(number, dtype=np.int64))
        chosen = ir.Node("", "Gather", (switch, index), name=f"/{SWITCH}/{number}/chosen")
        start = stream.get(span.start, span.start)
        either = ir.Node("", "Where", (chosen.outputs[0], start, start), name=f"/{SWITCH}/{number}/either")
        out = either.outputs[0]
        out.shape, out.type = span.end.shape, span.end.type
        chosen.outputs[0].name, out.name = f"{SWITCH}/{number}/chosen", f"{SWITCH}/{number}/either"
        maker = span.end.producer()
        assert maker is not None
        graph.insert_after(maker, (chosen, either))
        redirect(span.end, out)
        either.replace_input_with(2, span.end)
        span.end.name = span.end.name or f"{SWITCH}/{number}/layer"
        stream[span.end] = out
