"""The elements of integer tensors that carry sizes: how ``Shape(x)[0]`` becomes ``batch_size``.

The companion of :mod:`onnxforge.passes.shapes` for the Shape, Gather, Concat, arithmetic and
``Where(x == -1)`` chains that exporters write to compute the argument of a Reshape or an Expand.
"""

from collections.abc import Callable

import onnx_ir as ir

from onnxforge.passes.constants import integers, readable
from onnxforge.passes.dims import Dim, product
from onnxforge.passes.matching import input_at, int_attribute, is_op
from onnxforge.passes.shapes import MAX_ELEMENTS, Facts, Shape
from onnxforge.passes.slicing import slice_bounds

_UNCHANGED = frozenset(["Cast", "CastLike", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"])
_INTEGERS = (None, ir.DataType.INT64, ir.DataType.INT32)


def infer_sizes(node: ir.Node, facts: Facts) -> None:
    """Derive the elements of the output of ``node`` where it is a small integer tensor."""
    if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return
    rule = _copy if node.op_type in _UNCHANGED else _RULES.get(node.op_type)
    elements = rule(node, facts) if rule is not None else None
    shape = facts.shape(node.outputs[0])
    if elements is None or len(elements) > MAX_ELEMENTS or (shape is not None and len(shape) > 1):
        return
    facts.elements[node.outputs[0]] = elements


def _copy(node: ir.Node, facts: Facts) -> Shape | None:
    if is_op(node, "Cast") and ir.DataType(int_attribute(node, "to", 0)) not in _INTEGERS:
        return None
    if is_op(node, "CastLike") and facts.sizes(node.inputs[1]) is None:
        return None
    if is_op(node, "CastLike"):
        array = readable(node.inputs[0], MAX_ELEMENTS)
        if array is not None:
            return tuple(Dim.number(int(item)) for item in array.reshape(-1))
    return facts.sizes(node.inputs[0])


def _shape(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(shape)
    return shape[int_attribute(node, "start", 0) : end]


def _size(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.shape(node.inputs[0])
    return (product(shape),) if shape is not None else None


def _gather(node: ir.Node, facts: Facts) -> Shape | None:
    data, indices = facts.sizes(node.inputs[0]), integers(node.inputs[1])
    shape = facts.shape(node.inputs[0])
    if data is None or indices is None or (shape is not None and not shape):
        return None
    if any(not -len(data) <= index < len(data) for index in indices):
        return None
    return tuple(data[index] for index in indices)


def _concat(node: ir.Node, facts: Facts) -> Shape | None:
    parts = [facts.sizes(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return tuple(dim for part in known for dim in part) if len(known) == len(parts) else None


def _slice(node: ir.Node, facts: Facts) -> Shape | None:
    data, bounds = facts.sizes(node.inputs[0]), slice_bounds(node)
    if data is None or bounds is None or len(bounds) != 1:
        return None
    _, start, end, step = bounds[0]
    return data[start:end:step]


def _pairs(node: ir.Node, facts: Facts) -> tuple[tuple[Dim, Dim], ...] | None:
    left, right = facts.sizes(input_at(node, 0)), facts.sizes(input_at(node, 1))
    if left is None or right is None:
        return None
    count = max(len(left), len(right))
    if len(left) not in (1, count) or len(right) not in (1, count):
        return None
    left, right = left * (count // len(left)), right * (count // len(right))
    return tuple(zip(left, right, strict=True))


def _arithmetic(combine: Callable[[Dim, Dim], Dim | None]) -> Callable[[ir.Node, Facts], Shape | None]:
    def rule(node: ir.Node, facts: Facts) -> Shape | None:
        pairs = _pairs(node, facts)
        results = [combine(left, right) for left, right in pairs] if pairs is not None else [None]
        known = tuple(dim for dim in results if dim is not None)
        return known if len(known) == len(results) else None

    return rule


def _divide(left: Dim, right: Dim) -> Dim | None:
    if left.value is not None and right.value is not None and left.value >= 0 and right.value > 0:
        return Dim.number(left.value // right.value)
    return left.divided_by(right) if right.terms else None


def _equal(left: Dim, right: Dim) -> Dim | None:
    if left == right:
        return Dim.number(1)
    both_numbers = left.value is not None and right.value is not None
    signs = (left.is_size and (right.value or 0) < 0) or (right.is_size and (left.value or 0) < 0)
    return Dim.number(0) if both_numbers or signs else None


def _where(node: ir.Node, facts: Facts) -> Shape | None:
    condition, yes, no = (facts.sizes(value) for value in node.inputs)
    if condition is None or yes is None or no is None:
        return None
    count = max(len(condition), len(yes), len(no))
    columns = []
    for part in (condition, yes, no):
        if len(part) not in (1, count):
            return None
        columns.append(part * (count // len(part)))
    if any(flag.value is None for flag in columns[0]):
        return None
    return tuple(a if flag.value else b for flag, a, b in zip(*columns, strict=True))


def _filled(node: ir.Node, facts: Facts) -> Shape | None:
    shape = facts.sizes(node.inputs[0])
    if shape is None or len(shape) > 1:
        return None
    count = shape[0].value if shape else 1
    attribute = node.attributes.get("value")
    if count is None or count > MAX_ELEMENTS or attribute is None:
        return None
    tensor = attribute.as_tensor()
    return (Dim.number(int(tensor.numpy()[0])),) * count if tensor.dtype in _INTEGERS else None


def _reduce_prod(node: ir.Node, facts: Facts) -> Shape | None:
    data = facts.sizes(node.inputs[0])
    return (product(data),) if data is not None else None


_RULES: dict[str, Callable[[ir.Node, Facts], Shape | None]] = {
    "Add": _arithmetic(lambda a, b: a + b),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Div": _arithmetic(_divide),
    "Equal": _arithmetic(_equal),
    "Gather": _gather,
    "Mul": _arithmetic(lambda a, b: a * b),
    "ReduceProd": _reduce_prod,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Sub": _arithmetic(lambda a, b: a - b),
    "Where": _where,
}
