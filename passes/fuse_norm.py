"""Layer norms written as arithmetic become the one operator that ONNX has for them."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array, integers, scalar
from onnxforge.passes.matching import (
    both_orders,
    input_at,
    insert_after,
    int_attribute,
    is_op,
    make,
    only_use,
    producer,
    rank,
    redirect,
    remove_dead,
    split_scalar,
    static_dim,
)

RMS = "RMSNormalization"
LAYER = "LayerNormalization"
_SINCE = {RMS: 23, LAYER: 17}


@dataclass(frozen=True)
class _Found:
    """One norm: what it reads, the value that holds the normalised rows, and what it is."""

    op_type: str
    data: ir.Value
    normalised: ir.Value
    epsilon: float


@dataclass(frozen=True)
class FuseNorm(GraphPass):
    """Fuse the arithmetic of RMS norm and layer norm.

    ::

        x / sqrt(mean(x ** 2) + eps) * w                    ->  RMSNormalization(x, w)
        (x - mean(x)) / sqrt(var(x) + eps) * w [+ b]        ->  LayerNormalization(x, w[, b])

    All common spellings are read: Pow or Mul for the square, Div, Reciprocal or Pow(-0.5) for the division,
    a Cast to float32 and back around the whole, the weight before or after the Cast back, no weight at all
    (a vector of ones takes its place), no bias. The weight may be any vector, so ``1 + w`` needs nothing
    special: Canonicalize has folded it into a lazy weight.

    Why the standard operators: ONNX Runtime 1.31.1 runs RMSNormalization on CPU in the same kernel as its own
    SimplifiedLayerNormalization (576 wide: 0.7 us for 1 row and 70 us for 512 rows with either, one thread;
    the arithmetic it replaces 2.7 and 296 us), and onnx.checker accepts only the standard name.

    Sources: Zhang and Sennrich 2019 (RMS norm), Ba et al. 2016 (layer norm), the ONNX operator pages.
    """

    summary: ClassVar[str] = "RMSNormalization and LayerNormalization from their arithmetic"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every norm found in the main graph; near-misses are noted."""
        version = model.opset_imports.get("", 1)
        changed = False
        for node in tuple(model.graph):
            if is_op(node, "SimplifiedLayerNormalization") and version >= _SINCE[RMS]:
                changed |= _rename(node)
            elif is_op(node, "ReduceMean") and node.graph is not None:
                changed |= _fuse_at(node, version)
        return ir.passes.PassResult(model, modified=changed)


def _rename(node: ir.Node) -> bool:
    """ONNX Runtime's own operator of the same meaning; its second output has no counterpart."""
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return False
    node.op_type = RMS
    node.resize_outputs(1)
    return True


def _fuse_at(mean: ir.Node, version: int) -> bool:
    squared = mean.inputs[0]
    root = _square_root_of(squared)
    if root is None or squared is None:
        return False
    found = _match(root, mean)
    if isinstance(found, str):
        notes.near_miss(RMS, mean.name, found)
        return False
    if version < _SINCE[found.op_type]:
        reason = f"the graph is at opset {version}; {found.op_type} exists since {_SINCE[found.op_type]}"
        notes.near_miss(found.op_type, mean.name, reason)
        return False
    return _rewrite(found, mean)


def _square_root_of(squared: ir.Value | None) -> ir.Value | None:
    """``x`` where ``squared`` is ``x ** 2`` or ``x * x``."""
    node = producer(squared, "Pow", "Mul")
    if node is None or squared is None:
        return None
    if node.op_type == "Mul":
        return node.inputs[0] if node.inputs[0] is node.inputs[1] else None
    return node.inputs[0] if scalar(node.inputs[1]) == 2.0 else None


def _match(data: ir.Value, mean: ir.Node) -> _Found | str:
    """The norm around ``mean`` of the squares of ``data``, or why it is not one."""
    if not _over_last_axis(mean, data):
        return "the mean of squares does not run over the last axis alone with keepdims"
    add = only_use(mean.outputs[0])
    parts = split_scalar(add) if add is not None and is_op(add, "Add") else None
    if add is None or parts is None or parts[0] is not mean.outputs[0]:
        return "the mean of squares is not followed by the addition of a constant epsilon"
    divided = _divided(data, add.outputs[0])
    if divided is None:
        return "the root of the mean of squares does not divide the tensor it was taken from"
    centred = producer(data, "Sub")
    if centred is not None and _is_mean_of(centred.inputs[1], centred.inputs[0]):
        assert centred.inputs[0] is not None
        return _Found(LAYER, centred.inputs[0], divided, parts[1])
    return _Found(RMS, data, divided, parts[1])


def _over_last_axis(node: ir.Node, data: ir.Value) -> bool:
    if "axes" in node.attributes:
        axes: tuple[int, ...] | None = tuple(node.attributes["axes"].as_ints())
    else:
        axes = integers(input_at(node, 1))
    size = rank(data)
    last = axes == (-1,) or (size is not None and axes == (size - 1,))
    return last and int_attribute(node, "keepdims", 1) == 1


def _divided(data: ir.Value, variance: ir.Value) -> ir.Value | None:
    """``data / sqrt(variance)`` in any spelling."""
    root = only_use(variance)
    if root is None:
        return None
    if is_op(root, "Pow") and scalar(root.inputs[1]) == -0.5:
        return _multiplied(data, root.outputs[0])
    if not is_op(root, "Sqrt"):
        return None
    following = only_use(root.outputs[0])
    if following is None:
        return None
    if is_op(following, "Div") and following.inputs[1] is root.outputs[0]:
        if following.inputs[0] is data:
            return following.outputs[0]
        return _multiplied(data, following.outputs[0]) if scalar(following.inputs[0]) == 1.0 else None
    return _multiplied(data, following.outputs[0]) if is_op(following, "Reciprocal") else None


def _multiplied(data: ir.Value, factor: ir.Value) -> ir.Value | None:
    node = only_use(factor)
    if node is None or not is_op(node, "Mul"):
        return None
    return node.outputs[0] if any(left is data for left, _ in both_orders(node)) else None


def _is_mean_of(mean: ir.Value | None, data: ir.Value | None) -> bool:
    node = producer(mean, "ReduceMean")
    return node is not None and data is not None and node.inputs[0] is data and _over_last_axis(node, data)


def _rewrite(found: _Found, mean: ir.Node) -> bool:
    """Absorb the casts, the weight and the bias that follow, and put one node in place of all."""
    data, result = found.data, found.normalised
    widened = producer(data, "Cast")
    weight: ir.Value | None = None
    narrowed = widened is None
    for _ in range(2):
        step = only_use(result)
        if step is None:
            break
        vector = _vector_operand(step, result, found.data) if weight is None else None
        if is_op(step, "Mul") and vector is not None:
            weight, result = vector, step.outputs[0]
        elif widened is not None and not narrowed and _casts_back(step, widened, weight):
            narrowed, data, result = True, widened.inputs[0] or data, step.outputs[0]
    bias = None
    step = only_use(result) if found.op_type == LAYER and weight is not None else None
    if step is not None and is_op(step, "Add"):
        bias = _vector_operand(step, result, found.data)
        result = step.outputs[0] if bias is not None else result
    last = result.producer()
    assert last is not None
    graph = last.graph
    if not isinstance(graph, ir.Graph):
        return False
    if weight is None:
        weight = _ones(graph, found, data)
        if weight is None:
            notes.near_miss(found.op_type, mean.name, "no weight, and the width of the rows is not known")
            return False
    inputs = (data, weight, bias) if bias is not None else (data, weight)
    attributes: dict[str, int | float | str] = {"axis": -1, "epsilon": found.epsilon, "stash_type": 1}
    name = _scope(mean.name, found.op_type)
    node = make(found.op_type, inputs, like=result, name=name, attributes=attributes)
    insert_after(last, node)
    redirect(result, node.outputs[0])
    remove_dead([last])
    notes.match(found.op_type, name)
    return True


def _vector_operand(node: ir.Node, value: ir.Value, data: ir.Value) -> ir.Value | None:
    """The other operand of ``node`` where it is a vector as wide as the rows of ``data``."""
    if len(node.inputs) != 2:
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    if other is None or rank(other) != 1:
        return None
    width, rows = static_dim(other, 0), static_dim(data, -1)
    return other if width is not None and (rows is None or rows == width) and width > 1 else None


def _casts_back(node: ir.Node, widened: ir.Node, weight: ir.Value | None) -> bool:
    """Whether ``node`` undoes ``widened``. After a float32 weight it stays: the operator mixes no types."""
    source = widened.inputs[0]
    if source is None or (weight is not None and weight.dtype != source.dtype):
        return False
    return is_op(node, "Cast") and int_attribute(node, "to", 0) == source.dtype


def _ones(graph: ir.Graph, found: _Found, data: ir.Value) -> ir.Value | None:
    width, dtype = static_dim(found.data, -1), data.dtype or ir.DataType.FLOAT
    if width is None:
        return None
    return add_array(graph, f"ones.{width}", np.ones(width, dtype=dtype.numpy()))


def _scope(name: str | None, op_type: str) -> str:
    """The norm takes the scope of its ReduceMean: ``/layers.0/input_layernorm/RMSNormalization``."""
    head, slash, _ = (name or "").rpartition("/")
    return f"{head}{slash}{op_type}" if slash else f"{name}_{op_type}"
