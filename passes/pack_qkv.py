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
from onnxforge.passes.matching import CONTRIB, input_at, insert_after, is_op, make
from onnxforge.passes.stored_blocks import joined
from onnxforge.passes.subgraph_probe import Bench, Probe, Sizes, Unprobeable

_MOVES = frozenset(("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Identity", "Gather"))
_LONGEST_CHAIN = 8


class _NotPackable(Exception):
    """Why the products of one attention stay as they are."""


@dataclass(frozen=True)
class _Linear:
    """x @ weight [+ bias], and which of its columns make up one input of the attention."""

    data: ir.Value
    output: ir.Value
    product: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    columns: tuple[int, ...]


@dataclass(frozen=True)
class PackQkv(GraphPass):
    """Give GroupQueryAttention its query, key and value in one packed tensor, from one matrix product.

    ::

        before  q = x @ Wq (+ bq)   k = x @ Wk (+ bk)   v = x @ Wv (+ bv)   GroupQueryAttention(q, k, v, ...)
        after   qkv = x @ [Wq|Wk|Wv] (+ [bq|bk|bv])                         GroupQueryAttention(qkv, , , ...)

    Models that compute the three in one product and then split it, in whatever order of columns (phi3 side
    by side, gpt_neox head by head), lose the split: the columns are found by sending their numbers through
    it, and the weight is put in order. Weights are concatenated lazily, when the artifact is written.
    Attentions whose query or key pass through a norm first stay apart: the packed form has no room for it.

    Measured (ONNX Runtime 1.31, 2 threads of a busy machine, best of 7; projections and attention of one
    layer, time packed over time apart, at 1, 8 and 512 tokens): 9 heads of 64 in a model 576 wide 1.02, 1.01,
    0.93; 32 heads of 64 in one 2048 wide 0.88, 0.94, 0.84.

    MultiHeadAttention of encoders stays as it is. ONNX Runtime's CPU kernel refuses the packed form; one
    product and a Split took 1.29, 1.81, 0.97 times as long (384 wide) and 1.25, 0.97, 1.06 (768 wide).
    """

    summary: ClassVar[str] = "one matrix product for query, key and value"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack each GroupQueryAttention whose three inputs are columns of linear layers of one value."""
        graph = model.graph
        found: list[tuple[ir.Node, list[_Linear]]] = []
        probe = Bench(graph).probe(Sizes(2, 3, 5))
        for node in graph:
            if not is_op(node, "GroupQueryAttention", domain=CONTRIB) or input_at(node, 1) is None:
                continue
            try:
                found.append((node, _parts(node, probe)))
            except _NotPackable as reason:
                notes.near_miss("packed QKV", node.name, str(reason))
        for node, parts in found:
            _pack(graph, node, parts)
            notes.match("packed QKV", node.name)
        if found:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(found))


def _parts(attention: ir.Node, probe: Probe) -> list[_Linear]:
    """The linear layers behind query, key and value."""
    parts = [
        _linear(input_at(attention, index), name, probe)
        for index, name in enumerate(("query", "key", "value"))
    ]
    if any(part.data is not parts[0].data for part in parts):
        raise _NotPackable("query, key and value are not computed from one value")
    if len({part.bias is None for part in parts}) != 1:
        raise _NotPackable("only some of query, key and value have a bias")
    for part in parts:
        if not _only_feeds(part.output, attention):
            raise _NotPackable(f"{part.output.name!r} is used elsewhere too")
    return parts


def _linear(value: ir.Value | None, name: str, probe: Probe) -> _Linear:
    """The linear layer that ends in ``value``, up to the choice and order of columns."""
    source = value
    for _ in range(_LONGEST_CHAIN):
        node = source.producer() if source is not None else None
        if source is None or node is None:
            break
        biased = _bias(node)
        product = biased[0].producer() if biased is not None else node
        if is_op(product, "MatMul") and product is not None and _rank(product.inputs[1]) == 2:
            data, weight = product.inputs[0], product.inputs[1]
            if data is None or weight is None or value is None:
                break
            bias = biased[1] if biased is not None else None
            return _Linear(data, source, product, weight, bias, _columns(source, value, name, probe))
        if not is_op(node, *_MOVES):
            break
        source = node.inputs[0]
    raise _NotPackable(f"the {name} does not come straight from a linear layer")


def _bias(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """For the Add of a constant vector: the other input, and the vector."""
    if not is_op(node, "Add"):
        return None
    for data, bias in ((0, 1), (1, 0)):
        left, right = node.inputs[data], node.inputs[bias]
        if left is not None and right is not None and _rank(right) == 1:
            return left, right
    return None


def _rank(value: ir.Value | None) -> int | None:
    tensor = constant(value)
    return len(tensor.shape) if tensor is not None else None


def _columns(source: ir.Value, value: ir.Value, name: str, probe: Probe) -> tuple[int, ...]:
    """Which columns of ``source`` [B, S, N] make up ``value`` [B, S, n], in order."""
    try:
        shape = probe.shape(source)
        numbers = np.arange(shape[-1], dtype=np.float32)
        cells = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(*shape[:2], 1) * shape[-1]
        got = probe.assuming({source: cells + numbers}).value(value)
    except (Unprobeable, IndexError, ValueError) as reason:
        raise _NotPackable(f"the {name} cannot be traced to its columns: {reason}") from reason
    if got.ndim != 3 or got.shape[:2] != shape[:2] or not np.array_equal(got, cells + got[:1, :1]):
        raise _NotPackable(f"the {name} mixes tokens of its linear layer")
    return tuple(int(column) for column in got[0, 0])


def _only_feeds(value: ir.Value, attention: ir.Node) -> bool:
    """Whether ``attention`` is the only reader of ``value``, apart from what only selects columns for it."""
    if value.is_graph_output():
        return False
    for use in value.uses():
        if use.node is attention:
            continue
        if not is_op(use.node, *_MOVES) or not all(_only_feeds(out, attention) for out in use.node.outputs):
            return False
    return True


def _pack(graph: ir.Graph, attention: ir.Node, parts: list[_Linear]) -> None:
    first = parts[0]
    every = tuple(column for part in parts for column in part.columns)
    if all(part.output is first.output for part in parts) and every == tuple(range(len(every))):
        packed = first.output
        if packed.shape is None or packed.shape[-1] == len(every):
            _feed(attention, packed)
            return
    scope = (attention.name or "attention").rpartition("/")[0]
    made = _product(graph, parts, f"{scope}/qkv_proj", len(every))
    insert_after(_last_of(graph, [part.product for part in parts]), *made)
    _feed(attention, made[-1].outputs[0])


def _feed(attention: ir.Node, packed: ir.Value) -> None:
    attention.replace_input_with(0, packed)
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)


def _last_of(graph: ir.Graph, nodes: list[ir.Node]) -> ir.Node:
    """The one of ``nodes`` that stands last in the graph."""
    wanted = set(nodes)
    return [node for node in graph if node in wanted][-1]


def _product(graph: ir.Graph, parts: list[_Linear], scope: str, width: int) -> list[ir.Node]:
    first = parts[0]
    output = ir.Value(name=f"{scope}/MatMul_output", type=first.output.type)
    if first.output.shape is not None:
        output.shape = ir.Shape((*first.output.shape[:-1], width))
    weight = _joined(graph, [(part.weight, part.columns) for part in parts])
    made = [make("MatMul", (first.data, weight), like=output, name=f"{scope}/MatMul")]
    if first.bias is not None:
        bias = _joined(graph, [(part.bias, part.columns) for part in parts if part.bias is not None])
        made.append(make("Add", (made[0].outputs[0], bias), like=output, name=f"{scope}/Add"))
        made[1].outputs[0].name = f"{scope}/Add_output"
    return made


def _joined(graph: ir.Graph, pieces: list[tuple[ir.Value, tuple[int, ...]]]) -> ir.Value:
    """An initializer that holds the chosen columns side by side, computed when it is written."""
    chosen = [(tensor, columns) for value, columns in pieces if (tensor := constant(value)) is not None]
    tensor = chosen[0][0]
    rows = tuple(int(dim) for dim in tensor.shape.numpy()[:-1])
    shape = (*rows, sum(len(columns) for _, columns in chosen))
    first = pieces[0][0].name or "weight"
    name = first.replace("q_proj", "qkv_proj") if "q_proj" in first else f"{first}_qkv"
    packed = lazy_tensor(_concatenation(chosen), dtype=tensor.dtype, shape=shape, name=name)
    joined(chosen, packed)
    return add_initializer(graph, name, packed)


def _concatenation(pieces: list[tuple[ir.TensorProtocol, tuple[int, ...]]]) -> Callable[[], np.ndarray]:
    def compute() -> np.ndarray:
        return np.concatenate([_chosen(tensor.numpy(), columns) for tensor, columns in pieces], axis=-1)

    return compute


def _chosen(array: np.ndarray, columns: tuple[int, ...]) -> np.ndarray:
    everything = columns == tuple(range(array.shape[-1]))
    return array if everything else array[..., list(columns)]
