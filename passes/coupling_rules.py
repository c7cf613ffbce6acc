"""How the labels of one axis pass through an operator: one rule for each kind, in every direction at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant, extents, integers
from onnxforge.passes.dims import Dim
from onnxforge.passes.matching import input_at, int_attribute
from onnxforge.passes.operator_families import BROADCASTING
from onnxforge.passes.shapes import Facts


class Stopped(Exception):
    """The node that labels cannot pass, and why."""

    def __init__(self, node: ir.Node | None, reason: str) -> None:
        self.node, self.reason = node, reason
        where = f"{node.op_type} {node.name!r}" if node is not None else "the graph"
        super().__init__(f"{where}: {reason}")


@dataclass(frozen=True, eq=False)
class Label:
    """The unit of each entry along one axis of a value, counted from the end; -1 for none."""

    axis: int
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Coupling:
    """What a node implies: ``value`` has ``labels`` along ``axis``."""

    value: ir.Value
    axis: int
    labels: np.ndarray


Known: TypeAlias = Mapping[ir.Value, Label]
Rule: TypeAlias = Callable[[ir.Node, Known, Facts], Iterator[Coupling]]

_POINTWISE = frozenset(
    "Abs BiasGelu Cast Ceil Clip Cos Dropout Elu Erf Exp FastGelu Floor Gelu HardSigmoid HardSwish "  # noqa: SIM905
    "Identity IsNaN LeakyRelu Log Mish Neg Not QuickGelu Reciprocal Relu Round Selu Sigmoid Sign Sin "
    "Softplus Sqrt Swish Tanh".split()
)
_ALONG_AN_AXIS = frozenset(
    (
        "LayerNormalization",
        "LogSoftmax",
        "LpNormalization",
        "RMSNormalization",
        "SimplifiedLayerNormalization",
        "Softmax",
    )
)
_IN_PIECES = frozenset(("Split", "Concat"))
_ATTENTIONS = frozenset(("Attention", "MultiHeadAttention", "GroupQueryAttention"))
_ADDED = frozenset(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))


def couplings(node: ir.Node, known: Known, facts: Facts, *, complete: bool) -> Sequence[Coupling] | None:
    """What follows from the labels ``known`` for the other inputs and outputs of ``node``.

    None: not all pieces of the axis are labelled yet. With ``complete`` there is nothing more to come, and
    what has no label belongs to no unit.

    Raises:
        Stopped: ``node`` is none that labels can pass.
    """
    if node.op_type == "Constant":
        return ()
    if node.op_type in _IN_PIECES:
        return _pieces(node, known, facts, complete)
    if node.op_type in _POINTWISE or node.op_type in BROADCASTING:
        return tuple(_broadcast(node, known, facts))
    if node.op_type in _ALONG_AN_AXIS:
        return tuple(_beside_an_axis(node, known, facts))
    rule = _RULES.get(node.op_type)
    if rule is None:
        raise Stopped(node, _why_not(node))
    return tuple(rule(node, known, facts))


def _why_not(node: ir.Node) -> str:
    if node.op_type in _ATTENTIONS:
        return "an attention mixes these entries; only whole heads can be removed there"
    if node.op_type in _ADDED:
        return "it normalizes over this axis, so every entry depends on all"
    if node.op_type in ("DequantizeLinear", "MatMulNBits", "QuantizeLinear"):
        return "it is quantized already; prune before"
    if node.op_type == "Gather":
        return "it reads a table whose width is that of the model"
    return f"nothing is known of how {node.op_type} couples its axes"


def _labelled(node: ir.Node, known: Known) -> Iterator[tuple[ir.Value, Label]]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value in known:
            yield value, known[value]


def _broadcast(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """All operands that have the axis, and do not repeat one entry along it, share the labels."""
    _, label = next(_labelled(node, known))
    for value in (*node.inputs, *node.outputs[:1]):
        size = _size(value, label.axis, facts) if value is not None else 1
        if value is None or size == 1:
            continue
        if size is None and len(node.inputs) > 1 and value in node.inputs and value not in known:
            raise Stopped(node, f"the shape of {value.name!r} is not known")
        yield Coupling(value, label.axis, label.labels)


def _beside_an_axis(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """Norms and Softmax leave the axes alone that they do not reduce."""
    _, label = next(_labelled(node, known))
    data, axis = node.inputs[0], int_attribute(node, "axis", -1)
    shape = facts.shape(data)
    if data is None or (axis >= 0 and shape is None):
        raise Stopped(node, "its shapes are not known")
    if label.axis >= (axis - len(shape or ()) if axis >= 0 else axis):
        raise Stopped(node, "it normalizes over this axis, so every entry depends on all")
    for value in (data, node.outputs[0]):
        yield Coupling(value, label.axis, label.labels)


def _matmul(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """Rows of the right are columns of the left; rows and columns of the product come from one of them."""
    left, right, product = node.inputs[0], node.inputs[1], node.outputs[0]
    assert left is not None
    assert right is not None
    for value, label in tuple(_labelled(node, known)):
        axis, labels = label.axis, label.labels
        if axis < -2:
            for other in (left, right, product):
                if other is product or _size(other, axis, facts) not in (None, 1):
                    yield Coupling(other, axis, labels)
        elif value is left:
            yield Coupling(right, -2, labels) if axis == -1 else Coupling(product, -2, labels)
        elif value is right:
            yield Coupling(left, -1, labels) if axis == -2 else Coupling(product, -1, labels)
        else:
            yield Coupling(right, -1, labels) if axis == -1 else Coupling(left, -2, labels)


def _transpose(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    data = node.inputs[0]
    assert data is not None
    perm = node.attributes.get("perm")
    if perm is not None:
        order = tuple(perm.as_ints())
    else:
        shape = facts.shape(data)
        if shape is None:
            raise Stopped(node, f"the shape of {data.name!r} is not known")
        order = tuple(reversed(range(len(shape))))
    for value, label in tuple(_labelled(node, known)):
        if value is data:
            yield Coupling(node.outputs[0], order.index(label.axis + len(order)) - len(order), label.labels)
        else:
            yield Coupling(data, order[label.axis] - len(order), label.labels)


def _reshape(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """Entries keep their order, so labels that vary along one axis before may do so along one after."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = facts.shape(data), facts.shape(result)
    if before is None or after is None:
        raise Stopped(node, "its shapes are not known")
    if integers(node.inputs[1]) is None:
        raise Stopped(node, "the shape that it gives is computed, and would stay as it is")
    for value, label in tuple(_labelled(node, known)):
        here, there = (before, after) if value is data else (after, before)
        axis, labels = _moved(node, here, there, label)
        yield Coupling(result if value is data else data, axis, labels)


def _moved(node: ir.Node, here: Sequence[Dim], there: Sequence[Dim], label: Label) -> tuple[int, np.ndarray]:
    """The axis of ``there`` that carries ``label`` of ``here``, and its labels."""
    for ours, theirs in _matching_runs(here, there):
        if label.axis not in ours:
            continue
        sizes = [here[axis].value or 0 for axis in ours]
        wanted = [there[axis].value or 0 for axis in theirs]
        shape = [len(label.labels) if axis == label.axis else 1 for axis in ours]
        entries = np.broadcast_to(label.labels.reshape(shape), sizes).reshape(wanted)
        for place, axis in enumerate(theirs):
            along = np.moveaxis(entries, place, 0).reshape(wanted[place], -1)
            if (along == along[:, :1]).all():
                return axis, along[:, 0].copy()
        raise Stopped(node, "it spreads the entries of one unit over several axes")
    raise Stopped(node, "its shapes do not tell where the axis goes")


def _matching_runs(here: Sequence[Dim], there: Sequence[Dim]) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes, from the end, that hold the same entries before and after; known sizes only."""
    left, right = _from_the_end(here), _from_the_end(there)
    ours: list[int] = []
    theirs: list[int] = []
    entries, wanted = 1, 1
    while left or right:
        grows, axes, sizes = (left, ours, here) if entries <= wanted else (right, theirs, there)
        if not grows:
            return
        axes.append(grows.pop(0))
        size = sizes[axes[-1]].value
        if size is None:
            return
        entries, wanted = (entries * size, wanted) if axes is ours else (entries, wanted * size)
        if entries == wanted and ours and theirs:
            yield ours[::-1], theirs[::-1]
            ours, theirs, entries, wanted = [], [], 1, 1


def _from_the_end(shape: Sequence[Dim]) -> list[int]:
    return list(range(-1, -len(shape) - 1, -1))


def _rotary(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """Positions are turned within a head: whole heads pass, in both layouts."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    for value, label in tuple(_labelled(node, known)):
        heads = int_attribute(node, "num_heads", 0)
        whole = label.axis == -3 or (
            label.axis == -1 and heads and _is_whole(label.labels.reshape(heads, -1))
        )
        if not whole:
            raise Stopped(node, "it turns pairs of these entries; only whole heads can be removed there")
        yield Coupling(result if value is data else data, label.axis, label.labels)


def _is_whole(heads: np.ndarray) -> bool:
    return bool((heads == heads[:, :1]).all())


def _slice(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """The axes that are not sliced pass."""
    data, result = node.inputs[0], node.outputs[0]
    shape, axes = facts.shape(data), integers(input_at(node, 3))
    if data is None or shape is None or axes is None:
        raise Stopped(node, "its axes are not known")
    sliced = {axis % len(shape) - len(shape) for axis in axes}
    for value, label in tuple(_labelled(node, known)):
        if label.axis in sliced:
            raise Stopped(node, "it cuts a range of the axis that would change")
        yield Coupling(result if value is data else data, label.axis, label.labels)


def _shape(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """A size that is asked for at run time follows by itself."""
    return iter(())


def _shifted(node: ir.Node, known: Known, facts: Facts) -> Iterator[Coupling]:
    """Squeeze and Unsqueeze: the other axes pass."""
    data, result = node.inputs[0], node.outputs[0]
    before, after = facts.shape(data), facts.shape(result)
    axes = integers(input_at(node, 1))
    if before is None or after is None or axes is None or data is None:
        raise Stopped(node, "its shapes are not known")
    longer, shorter = (before, after) if node.op_type == "Squeeze" else (after, before)
    gone = {axis % len(longer) - len(longer) for axis in axes}
    left = [axis for axis in range(-len(longer), 0) if axis not in gone]
    places = dict(zip(left, range(-len(shorter), 0), strict=True))
    back = {short: long for long, short in places.items()}
    for value, label in tuple(_labelled(node, known)):
        towards = places if (value is data) == (node.op_type == "Squeeze") else back
        if label.axis not in towards:
            raise Stopped(node, "the axis that it drops would change")
        yield Coupling(result if value is data else data, towards[label.axis], label.labels)


_RULES: Mapping[str, Rule] = {
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "RotaryEmbedding": _rotary,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _shifted,
    "Unsqueeze": _shifted,
}


def _pieces(node: ir.Node, known: Known, facts: Facts, complete: bool) -> Sequence[Coupling] | None:
    """Split and Concat: along another axis all share the labels; along their own, each has a run of them."""
    split = node.op_type == "Split"
    whole = node.inputs[0] if split else node.outputs[0]
    parts = node.outputs if split else node.inputs
    assert whole is not None
    axis = int_attribute(node, "axis", 0)
    shape = facts.shape(whole)
    if axis >= 0 and shape is None:
        raise Stopped(node, f"the shape of {whole.name!r} is not known")
    axis = axis - len(shape or ()) if axis >= 0 else axis
    named = [(value, label) for value, label in _labelled(node, known)]
    if any(label.axis != axis for _, label in named):
        _, label = named[0]
        return [Coupling(value, label.axis, label.labels) for value in (whole, *parts) if value is not None]
    sizes = [_size(part, axis, facts) for part in parts]
    if None in sizes:
        raise Stopped(node, "the sizes of its pieces are not known")
    if whole in known:
        ends = np.cumsum([size or 0 for size in sizes])[:-1]
        runs = np.split(known[whole].labels, ends)
        return [Coupling(part, axis, run) for part, run in zip(parts, runs, strict=True) if part is not None]
    labels = [known[part].labels if part in known else None for part in parts if part is not None]
    if not complete and any(run is None for run in labels):
        return None
    runs = [
        run if run is not None else np.full(size or 0, -1) for run, size in zip(labels, sizes, strict=True)
    ]
    return [Coupling(whole, axis, np.concatenate(runs))]


def _size(value: ir.Value | None, axis: int, facts: Facts) -> int | None:
    """The entries along ``axis``: 1 where ``value`` has no such axis, None where that is not known."""
    if value is None:
        return 1
    tensor = constant(value)
    if tensor is not None:
        sizes = extents(tensor)
        return sizes[axis] if len(sizes) >= -axis else 1
    shape = facts.shape(value)
    if shape is None:
        return None
    return shape[axis].value if len(shape) >= -axis else 1
