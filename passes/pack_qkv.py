"""One matrix product for query, key and value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_initializer, constant
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.matching import CONTRIB, input_at, insert_after, is_op, make, only_use


class _NotPackable(Exception):
    """Why the three products of one attention stay apart."""


@dataclass(frozen=True)
class _Linear:
    """x @ weight [+ bias], read by one attention input and by nothing else."""

    data: ir.Value
    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None


@dataclass(frozen=True)
class PackQkv(GraphPass):
    """Give GroupQueryAttention its query, key and value in one packed tensor, from one matrix product.

    ::

        before  q = x @ Wq (+ bq)   k = x @ Wk (+ bk)   v = x @ Wv (+ bv)   GroupQueryAttention(q, k, v, ...)
        after   qkv = x @ [Wq|Wk|Wv] (+ [bq|bk|bv])                         GroupQueryAttention(qkv, , , ...)

    Weights are concatenated lazily, when the artifact is written. Attentions whose query or key pass through
    a norm first stay apart: the packed form leaves no room for it.
    """

    summary: ClassVar[str] = "one matrix product for query, key and value"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack each GroupQueryAttention whose three inputs are plain linear layers of one value."""
        packed = 0
        for node in tuple(model.graph):
            if not is_op(node, "GroupQueryAttention", domain=CONTRIB) or input_at(node, 1) is None:
                continue
            where = node.name or node.outputs[0].name
            try:
                _pack(model.graph, node)
            except _NotPackable as reason:
                notes.near_miss("packed QKV", where, str(reason))
                continue
            notes.match("packed QKV", where)
            packed += 1
        if packed:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(packed))


def _pack(graph: ir.Graph, attention: ir.Node) -> None:
    parts = [
        _linear(input_at(attention, index), name) for index, name in enumerate(("query", "key", "value"))
    ]
    if any(part.data is not parts[0].data for part in parts):
        raise _NotPackable("query, key and value are not computed from one value")
    if len({part.bias is None for part in parts}) != 1:
        raise _NotPackable("only some of query, key and value have a bias")
    first, query = parts[0], attention.inputs[0]
    assert query is not None
    last = max((part.product for part in parts), key=lambda node: _position(graph, node))
    scope = (attention.name or "attention").rpartition("/")[0]
    weight = _joined(graph, [part.weight for part in parts], axis=1)
    shape = (*(query.shape or ())[:-1], weight.shape[1]) if query.shape is not None and weight.shape else None
    product = make("MatMul", (first.data, weight), like=query, name=f"{scope}/qkv_proj/MatMul")
    product.outputs[0].name = f"{scope}/qkv_proj/MatMul_output"
    made = [product]
    biases = [part.bias for part in parts if part.bias is not None]
    if biases:
        added = make(
            "Add",
            (product.outputs[0], _joined(graph, biases, axis=0)),
            like=query,
            name=f"{scope}/qkv_proj/Add",
        )
        added.outputs[0].name = f"{scope}/qkv_proj/Add_output"
        made.append(added)
    for node in made:
        node.outputs[0].shape = ir.Shape(shape) if shape is not None else None
    insert_after(last, *made)
    attention.replace_input_with(0, made[-1].outputs[0])
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)


def _position(graph: ir.Graph, wanted: ir.Node) -> int:
    return next(index for index, node in enumerate(graph) if node is wanted)


def _linear(value: ir.Value | None, name: str) -> _Linear:
    """The linear layer that ends in ``value``."""
    if value is None or only_use(value) is None:
        raise _NotPackable(f"the {name} is used elsewhere too")
    node, bias = value.producer(), None
    if is_op(node, "Add") and node is not None:
        biased = [
            (a, b) for a, b in (tuple(node.inputs), tuple(node.inputs)[::-1]) if _is_constant(b, rank=1)
        ]
        if not biased or biased[0][0] is None or only_use(biased[0][0]) is None:
            raise _NotPackable(f"the {name} comes from an Add that is no bias")
        bias, node = biased[0][1], biased[0][0].producer()
    if node is None or not is_op(node, "MatMul") or not _is_constant(node.inputs[1], rank=2):
        raise _NotPackable(f"the {name} does not come straight from a linear layer")
    data, weight = node.inputs[0], node.inputs[1]
    if data is None or weight is None:
        raise _NotPackable(f"the {name} lacks an operand")
    return _Linear(data, node, weight, bias)


def _is_constant(value: ir.Value | None, rank: int) -> bool:
    tensor = constant(value)
    return tensor is not None and len(tensor.shape) == rank


def _joined(graph: ir.Graph, values: list[ir.Value], axis: int) -> ir.Value:
    """An initializer that holds ``values`` side by side, computed when it is written."""
    tensors = [tensor for value in values if (tensor := constant(value)) is not None]
    shapes = [tuple(int(dim) for dim in tensor.shape.numpy()) for tensor in tensors]
    shape = list(shapes[0])
    shape[axis] = sum(item[axis] for item in shapes)
    name = (values[0].name or "weight").replace("q_proj", "qkv_proj")
    return add_initializer(
        graph,
        name if name != values[0].name else f"{name}_qkv",
        lazy_tensor(_concatenation(tensors, axis), dtype=tensors[0].dtype, shape=shape),
    )


def _concatenation(tensors: list[ir.TensorProtocol], axis: int) -> Callable[[], np.ndarray]:
    return lambda: np.concatenate([tensor.numpy() for tensor in tensors], axis=axis)
