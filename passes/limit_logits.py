"""Let a caller ask for the logits of the last few tokens only."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_initializer, constant

LOGITS_TO_KEEP = "num_logits_to_keep"
_PROJECTIONS = frozenset({"MatMul", "Gemm", "MatMulNBits", "FusedMatMul"})
_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})
"""What may stand between the LM head and the logits: bias, logit scaling, soft-capping."""


@dataclass(frozen=True)
class LimitLogits(GraphPass):
    """Slice the hidden states in front of the LM head to the last ``num_logits_to_keep`` tokens.

    ::

        hidden [B,S,H] ─ MatMul ─ logits        hidden ─ Slice(-n:) ─ MatMul ─ logits [B, n or S, V]
                                                            n = num_logits_to_keep

    ``num_logits_to_keep`` (int64 scalar) is an *optional* graph input: an initializer of value 0, "all of
    them", stands behind it. Callers that know nothing of it see the graph they always saw. A generation loop
    feeds 1 and saves the LM head of the whole prompt, a fifth of the MatMul work of SmolLM2-135M
    (docs/decisions/0004-optional-logits.md).
    """

    summary: ClassVar[str] = "optional input num_logits_to_keep: the LM head runs on the last tokens only"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the slice once; a graph that has the input already, or has no LM head, stays as it is."""
        graph = model.graph
        logits = next((value for value in graph.outputs if value.name == "logits"), None)
        if logits is None or any(value.name == LOGITS_TO_KEEP for value in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        if not any((value.name or "").startswith("past_key_values.") for value in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        head = _projection_behind(logits)
        if head is None:
            reason = "no projection found behind the logits: expected MatMul, Gemm or MatMulNBits"
            notes.near_miss(LOGITS_TO_KEEP, logits.name, reason)
            return ir.passes.PassResult(model, modified=False)
        hidden = head.inputs[0]
        if hidden is None or hidden.shape is None or len(hidden.shape) != 3:
            reason = f"{head.op_type} reads states of unknown layout; [batch, sequence, hidden] is needed"
            notes.near_miss(LOGITS_TO_KEEP, head.name, reason)
            return ir.passes.PassResult(model, modified=False)
        head.replace_input_with(0, _last_tokens(graph, hidden, hidden.shape, head))
        if logits.shape is not None:
            logits.shape = ir.Shape([logits.shape[0], "num_logits", *logits.shape[2:]])
        notes.match(LOGITS_TO_KEEP, head.name)
        return ir.passes.PassResult(model, modified=True)


def _projection_behind(value: ir.Value) -> ir.Node | None:
    """The projection that ends in ``value``, past elementwise nodes of one computed input."""
    node = value.producer()
    while node is not None and node.op_type in _ELEMENTWISE:
        computed = [item for item in node.inputs if item is not None and constant(item) is None]
        node = computed[0].producer() if len(computed) == 1 else None
    return node if node is not None and node.op_type in _PROJECTIONS else None


def _last_tokens(graph: ir.Graph, hidden: ir.Value, shape: ir.Shape, before: ir.Node) -> ir.Value:
    keep = ir.Value(
        name=LOGITS_TO_KEEP,
        shape=ir.Shape([]),
        type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array(0, np.int64), name=LOGITS_TO_KEEP),
    )
    graph.inputs.append(keep)
    graph.register_initializer(keep)
    axis = add_initializer(graph, "limit_logits/axis", ir.tensor(np.array([1], np.int64)))
    end = add_initializer(graph, "limit_logits/end", ir.tensor(np.array([np.iinfo(np.int64).max], np.int64)))
    # -n is where the last n begin, and -0 is the beginning: 0 keeps everything without a branch. The zero is
    # made of a shape because those are on the CPU, and so is then what is made of it, on a GPU as well: a
    # Slice wants to be told there where to begin, and a copy would wait for the GPU in every step.
    size = ir.node("Shape", [hidden], {"start": 0, "end": 1}, name="/limit_logits/Shape")
    zero = ir.Node("", "Sub", [size.outputs[0]] * 2, name="/limit_logits/Zero")
    start = ir.Node("", "Sub", [zero.outputs[0], keep], name="/limit_logits/Sub")
    last = ir.Node("", "Slice", [hidden, start.outputs[0], end, axis], name="/limit_logits/Slice")
    for node, name in ((size, "size"), (zero, "zero"), (start, "start"), (last, "last_tokens")):
        node.outputs[0].name = f"limit_logits/{name}"
    last.outputs[0].shape = ir.Shape([shape[0], "num_logits", shape[2]])
    last.outputs[0].type = hidden.type
    graph.insert_before(before, [size, zero, start, last])
    return last.outputs[0]
