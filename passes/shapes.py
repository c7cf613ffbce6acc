"""What can be known of shapes before the graph runs: one forward walk with named dimensions.

:class:`Facts` holds, for each value, its shape as polynomials (:class:`~onnxforge.passes.dims.Dim`) and,
for small integer tensors that carry sizes, their elements. ONNX's own inference forgets how ``batch_size``
travels through Shape, Gather, Concat and Reshape, and older exports record no shapes at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx_ir as ir

from onnxforge.passes.constants import constant, integers, readable
from onnxforge.passes.dims import Dim, product
from onnxforge.passes.matching import input_at, int_attribute, is_op
from onnxforge.passes.operator_families import BROADCASTING, ELEMENTWISE, REDUCTIONS
from onnxforge.passes.slicing import slice_bounds

Shape: TypeAlias = tuple[Dim, ...]
ONE = Dim.number(1)
MAX_ELEMENTS = 64
"""Integer tensors with more elements are indices, not sizes."""


@dataclass
class Facts:
    """Shapes, and the elements of size-carrying integer tensors, of the values seen so far."""

    shapes: dict[ir.Value, Shape] = field(default_factory=dict)
    elements: dict[ir.Value, Shape] = field(default_factory=dict)
    """Elements of int64/int32 tensors of rank 0 or 1."""
    _unknown: int = 0

    def unknown(self) -> Dim:
        """A dimension about which nothing is known, not even that it equals another."""
        self._unknown += 1
        return Dim.symbol(f"?{self._unknown}")

    def shape(self, value: ir.Value | None) -> Shape | None:
        """The shape of ``value``; read from the value itself where the walk has not derived one."""
        if value is None:
            return None
        if value not in self.shapes:
            tensor = constant(value)
            recorded = tensor.shape if tensor is not None else value.shape
            if recorded is None:
                return None
            self.shapes[value] = tuple(self._recorded(dim) for dim in recorded)
        return self.shapes[value]

    def sizes(self, value: ir.Value | None) -> Shape | None:
        """The elements of an integer tensor, where they are known."""
        if value is None:
            return None
        if value not in self.elements:
            array = readable(value, MAX_ELEMENTS)
            if array is None or array.ndim > 1 or array.dtype.kind not in "iub":
                return None
            self.elements[value] = tuple(Dim.number(int(number)) for number in array.reshape(-1))
        return self.elements[value]

    def _recorded(self, dim: object) -> Dim:
        if isinstance(dim, int):
            return Dim.number(dim)
        text = dim.value if isinstance(dim, ir.SymbolicDim) else None
        parts = [part.strip() for part in text.split("+")] if text else []
        if not parts or not all(part.isidentifier() or part.isdigit() for part in parts):
            return self.unknown()
        total = Dim.number(0)
        for part in parts:
            total = total + (Dim.number(int(part)) if part.isdigit() else Dim.symbol(part))
        return total


def infer_shapes(node: ir.Node, facts: Facts) -> None:
    """Derive the shapes of the outputs of ``node`` and record them, in ``facts`` only."""
    if is_op(node, "Split"):
        _split(node, facts)
        return
    shape = _first_output(node, facts)
    if shape is not None and node.outputs:
        facts.shapes[node.outputs[0]] = shape


def _first_output(node: ir.Node, facts: Facts) -> Shape | None:
    if node.op_type in ELEMENTWISE:
        return facts.shape(input_at(node, 0))
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in BROADCASTING:
        return broadcast([facts.shape(value) for value in node.inputs], facts)
    if node.op_type in REDUCTIONS:
        return _reduce(node, facts)
    rule = _RULES.get(node.op_type)
    return rule(node, facts) if rule is not None else None


def broadcast(shapes: Sequence[Shape | None], facts: Facts) -> Shape | None:
    """The common shape under numpy rules; a dimension that cannot be decided is unknown."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes):
        return None
    rank = max((len(shape) for shape in known), default=0)
    result: list[Dim] = []
    for axis in range(rank):
        column = {shape[axis - rank + len(shape)] for shape in known if axis - rank + len(shape) >= 0} - {ONE}
        numbers = [dim for dim in column if dim.value is not None]
        if len(column) <= 1:
            result.append(next(iter(column), ONE))
        else:
            result.append(numbers[0] if numbers else facts.unknown())
    return tuple(result)


def _axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The axes of a Squeeze, Unsqueeze or reduction, from the attribute or the second input; () for all."""
    if "axes" in node.attributes:
        axes: tuple[int, ...] | None = tuple(node.attributes["axes"].as_ints())
    else:
        second = input_at(node, 1)
        axes = () if second is None else integers(second)
    return None if axes is None else tuple(axis % rank if rank else 0 for axis in axes)


def _reduce(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    axes = _axes(node, len(shape)) if shape is not None else None
    if shape is None or axes is None:
        return None
    if not axes:
        if int_attribute(node, "noop_with_empty_axes", 0):
            return shape
        axes = tuple(range(len(shape)))
    keep = int_attribute(node, "keepdims", 1)
    return tuple(ONE if i in axes else dim for i, dim in enumerate(shape) if keep or i not in axes)


def _matmul(node: ir.Node, facts: Facts) -> Shape | None:
    left, right = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    batch = broadcast([left[:-2], right[:-2]], facts)
    return (*batch, left[-2], right[-1]) if batch is not None else None


def _gemm(node: ir.Node, facts: Facts) -> Shape | None:
    left, right = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return (left[int_attribute(node, "transA", 0)], right[1 - int_attribute(node, "transB", 0)])


def _transpose(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    perm = node.attributes.get("perm")
    order = perm.as_ints() if perm is not None else range(len(shape) - 1, -1, -1)
    return tuple(shape[axis] for axis in order)


def reshape(shape: Shape, wanted: Shape, allowzero: bool) -> Shape | None:
    """The result of Reshape: ``wanted`` with 0 (copy) and -1 (the rest) filled in; None if it stays open."""
    minus_one = Dim.number(-1)
    result = [
        shape[axis] if not dim.terms and not allowzero and axis < len(shape) else dim
        for axis, dim in enumerate(wanted)
    ]
    if minus_one not in result:
        return tuple(result)
    hole = result.index(minus_one)
    over, under = list(shape), [dim for axis, dim in enumerate(result) if axis != hole]
    for dim in tuple(under):
        if dim in over:
            over.remove(dim)
            under.remove(dim)
    rest = product(over).divided_by(product(under))
    if rest is None:
        return None
    result[hole] = rest
    return tuple(result)


def _reshape(node: ir.Node, facts: Facts) -> Shape | None:
    wanted, shape = facts.sizes(node.inputs[1]), facts.shape(node.inputs[0])
    if wanted is None:
        return None
    done = reshape(shape, wanted, bool(int_attribute(node, "allowzero", 0))) if shape is not None else None
    if done is not None:
        return done
    return tuple(dim if dim.is_size and dim.terms else facts.unknown() for dim in wanted)


def _unsqueeze(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    count = len(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
    if count is None:
        axes_input = integers(input_at(node, 1))
        count = len(axes_input) if axes_input is not None else None
    axes = _axes(node, len(shape) + count) if count is not None else None
    if axes is None:
        return None
    rest = iter(shape)
    return tuple(ONE if axis in axes else next(rest) for axis in range(len(shape) + len(axes)))


def _squeeze(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    axes = _axes(node, len(shape)) if shape is not None else None
    if shape is None or axes is None:
        return None
    if not axes:
        axes = tuple(axis for axis, dim in enumerate(shape) if dim == ONE)
    return tuple(dim for axis, dim in enumerate(shape) if axis not in axes)


def _concat(node: ir.Node, facts: Facts) -> Shape | None:
    shapes = [facts.shape(value) for value in node.inputs]
    first = shapes[0]
    known = [shape for shape in shapes if shape is not None]
    if first is None or len(known) != len(shapes) or any(len(shape) != len(first) for shape in known):
        return None
    axis = int_attribute(node, "axis", 0) % len(first)
    result = list(first)
    for shape in known[1:]:
        result[axis] = result[axis] + shape[axis]
    return tuple(result)


def _slice(node: ir.Node, facts: Facts) -> Shape | None:
    shape, bounds = facts.shape(node.inputs[0]), slice_bounds(node)
    if shape is None:
        return None
    if bounds is None:
        return _computed_slice(node, shape, facts)
    result = list(shape)
    for axis, start, end, step in bounds:
        result[axis % len(shape)] = _sliced(result[axis % len(shape)], start, end, step) or facts.unknown()
    return tuple(result)


def _computed_slice(node: ir.Node, shape: Shape, facts: Facts) -> Shape | None:
    """A Slice between computed bounds. A stored table (a mask, position ids) is taken to be long enough:
    a shorter one could not run.
    """
    starts, ends = facts.sizes(input_at(node, 1)), facts.sizes(input_at(node, 2))
    axes, steps = integers(input_at(node, 3)), integers(input_at(node, 4))
    touched = {axis % len(shape) for axis in axes} if axes is not None else set(range(len(shape)))
    result = [facts.unknown() if axis in touched else dim for axis, dim in enumerate(shape)]
    if starts is None or ends is None or axes is None or set(steps or (1,)) != {1}:
        return tuple(result)
    for axis, start, end in zip(axes, starts, ends, strict=True):
        if shape[axis].value is not None and start.is_size and end.is_size and end.value is None:
            result[axis] = end - start
    return tuple(result)


def _sliced(dim: Dim, start: int, end: int, step: int) -> Dim | None:
    if dim.value is not None:
        return Dim.number(len(range(*slice(start, end, step).indices(dim.value))))
    everything = start == 0 and step == 1 and end >= 2**31 - 1
    return dim if everything else None


def _split(node: ir.Node, facts: Facts) -> None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return
    axis = int_attribute(node, "axis", 0) % len(shape)
    sizes = facts.sizes(input_at(node, 1))
    if "split" in node.attributes:
        sizes = tuple(Dim.number(size) for size in node.attributes["split"].as_ints())
    if sizes is None and input_at(node, 1) is None:
        each = shape[axis].divided_by(Dim.number(len(node.outputs)))
        sizes = (each,) * len(node.outputs) if each is not None else None
    for index, output in enumerate(node.outputs):
        part = sizes[index] if sizes is not None else facts.unknown()
        facts.shapes[output] = tuple(part if i == axis else dim for i, dim in enumerate(shape))


def _gather(node: ir.Node, facts: Facts) -> Shape | None:
    data, indices = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if data is None or indices is None:
        return None
    axis = int_attribute(node, "axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _expand(node: ir.Node, facts: Facts) -> Shape | None:
    return broadcast([facts.shape(node.inputs[0]), facts.sizes(node.inputs[1])], facts)


def _range(node: ir.Node, facts: Facts) -> Shape | None:
    start, limit, delta = (facts.sizes(value) for value in node.inputs)
    if start is None or limit is None or delta != (ONE,):
        return (facts.unknown(),)
    return (limit[0] - start[0],)


def _flatten(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    axis = int_attribute(node, "axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return (product(shape[:axis]), product(shape[axis:]))


def _attention(node: ir.Node, facts: Facts) -> Shape | None:
    query, value = facts.shape(node.inputs[0]), facts.shape(node.inputs[2])
    if query is None or value is None or len(query) != 4 or len(value) != 4:
        return None
    return (*query[:3], value[3])


def _one_dim(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    start = int_attribute(node, "start", 0)
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
    return (Dim.number(len(shape[start:end])),)


_RULES: dict[str, Callable[[ir.Node, Facts], Shape | None]] = {
    "Attention": _attention,
    "Concat": _concat,
    "ConstantOfShape": lambda node, facts: facts.sizes(node.inputs[0]),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": lambda node, facts: facts.shape(node.inputs[1]),
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _one_dim,
    "Size": lambda node, facts: (),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
