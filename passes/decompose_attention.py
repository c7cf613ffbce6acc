"""The standard Attention operator as the MatMul, Softmax and MatMul that it stands for."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import input_at, int_attribute, is_op, rank, redirect, static_dim

WHAT = "written-out attention"
NEVER = -32768.0
"""Added to the score of a key that is hidden: far below any score, and within float16 when one is added."""
_MASK, _PAST = 3, (4, 5, 6)


@dataclass(frozen=True)
class DecomposeAttention(GraphPass):
    """Write Attention (opset 23) out, in operators that every version of TensorRT's parser knows.

    ::

        Attention(q, k, v, mask)  ->  MatMul(Softmax(MatMul(q * scale, k^T) + bias), v)
        bias                       =  Where(mask, 0, -32768) once for all layers if boolean; else mask

    q, k, v are [B, H, L, D]. TensorRT recognises the written-out form and fuses it; its parser takes the
    operator itself only from 10.14 on, and then without a cache, soft-capping or grouped queries. The scale
    goes to the queries, before float16 could overflow in the product.
    """

    summary: ClassVar[str] = "Attention as MatMul, Softmax, MatMul (for TensorRT)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place; an attention with a cache or other extras stays, with the reason."""
        biases: dict[ir.Value, ir.Value] = {}
        changed = False
        for node in tuple(model.graph):
            if not is_op(node, "Attention"):
                continue
            objection = _objection(node)
            if objection:
                notes.near_miss(WHAT, node.name, objection)
                continue
            _write_out(model.graph, node, biases)
            notes.match(WHAT, node.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _objection(node: ir.Node) -> str:
    """Why ``node`` is more than the plain form, or nothing."""
    softcap = node.attributes.get("softcap")
    ranks = [rank(value) if value is not None else None for value in node.inputs[:3]]
    heads = {static_dim(value, 1) for value in node.inputs[:3]}
    used = [out for out in node.outputs[1:] if out.uses() or out.is_graph_output()]
    reasons = (
        (any(input_at(node, index) is not None for index in _PAST), "it has a cache"),
        (bool(used), "its cache or its scores are read"),
        (softcap is not None and softcap.as_float() != 0, "its scores are soft-capped"),
        (bool(int_attribute(node, "is_causal", 0)), "it is causal by attribute"),
        (ranks != [4, 4, 4], "its operands are not known to be [batch, heads, length, size]"),
        (len(heads) != 1, "several queries share a key"),
        (_scale(node) is None, "the size of its heads is not known"),
    )
    return next((text for applies, text in reasons if applies), "")


def _scale(node: ir.Node) -> float | None:
    attribute = node.attributes.get("scale")
    if attribute is not None:
        return attribute.as_float()
    size = static_dim(node.inputs[0], 3)
    return size**-0.5 if size else None


def _write_out(graph: ir.Graph, node: ir.Node, biases: dict[ir.Value, ir.Value]) -> None:
    query, key, value = node.inputs[:3]
    scale, mask, result = _scale(node), input_at(node, _MASK), node.outputs[0]
    assert query is not None
    assert key is not None
    kind = query.type or ir.TensorType(ir.DataType.FLOAT)
    numbers = kind.dtype.numpy()

    def add(op_type: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        name = f"{node.name}/{op_type}_{len(made)}"
        converted = ir.convenience.convert_attributes(attributes)
        output = ir.Value(name=f"{name}_output", type=ir.TensorType(kind.dtype))
        made.append(ir.Node("", op_type, inputs, converted, outputs=(output,), name=name))
        return output

    made: list[ir.Node] = []
    factor = add_array(graph, f"{node.name}.scale", np.array(scale, dtype=numbers))
    scaled = add("Mul", query, factor)
    turned = add("Transpose", key)
    made[-1].attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 3, 2])
    scores = add("MatMul", scaled, turned)
    if mask is not None:
        if mask not in biases:
            biases[mask] = _bias(graph, node, mask, kind.dtype)
        scores = add("Add", scores, biases[mask])
    weights = add("Softmax", scores, axis=-1)
    mixed = add("MatMul", weights, value)
    mixed.shape = result.shape
    graph.insert_before(node, made)
    redirect(result, mixed)
    graph.remove(node, safe=True)


def _bias(graph: ir.Graph, node: ir.Node, mask: ir.Value, dtype: ir.DataType) -> ir.Value:
    """What a mask adds to the scores; written before the first attention that reads it."""
    if mask.dtype is not ir.DataType.BOOL:
        return mask
    shown = add_array(graph, "score_of_shown", np.array(0, dtype=dtype.numpy()))
    hidden = add_array(graph, "score_of_hidden", np.array(NEVER, dtype=dtype.numpy()))
    output = ir.Value(name=f"{mask.name}.bias", shape=mask.shape, type=ir.TensorType(dtype))
    where = ir.Node("", "Where", (mask, shown, hidden), outputs=(output,), name=f"{mask.name}/bias")
    graph.insert_before(node, where)
    return output
