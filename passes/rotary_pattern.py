"""Reading rotary position embedding out of the arithmetic that exporters write for it.

::

    x * cos + rotate(x) * sin

where ``rotate`` is ``concat(-x[h:], x[:h])`` (half rotation: llama, gpt_neox) or the same on even and odd
elements (interleaved: cohere, gpt-j). With partial rotation (phi, stablelm, gpt_neox) ``x`` is the first
part of each head and a Concat puts the untouched rest behind the result.
"""

from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.passes.constants import integers
from onnxforge.passes.matching import (
    both_orders,
    input_at,
    int_attribute,
    is_op,
    only_use,
    producer,
    rank,
    static_dim,
)
from onnxforge.passes.slicing import slice_bounds


@dataclass(frozen=True)
class Rotation:
    """One rotary embedding: ``result = rotate(data)`` with factors that broadcast over the heads."""

    data: ir.Value
    """[batch, heads, sequence, head_dim]."""
    cos: ir.Value
    sin: ir.Value
    result: ir.Value
    interleaved: bool
    rotary_dim: int
    head_dim: int


@dataclass(frozen=True)
class _Part:
    """``source[..., start:stop:step]`` along the last axis."""

    source: ir.Value
    start: int
    stop: int
    step: int


def match_rotation(add: ir.Node) -> Rotation | None:
    """The rotation whose sum ``add`` computes, or None."""
    if not is_op(add, "Add"):
        return None
    for plain, turned in both_orders(add):
        left, right = producer(plain, "Mul"), producer(turned, "Mul")
        if left is None or right is None:
            continue
        for rotated, sin in both_orders(right):
            source = _half_rotated(rotated) or _pair_rotated(rotated)
            if source is None:
                continue
            cosines = [cos for data, cos in both_orders(left) if data is source]
            if cosines:
                return _with_rest(
                    source, cosines[0], sin, add.outputs[0], is_op(rotated.producer(), "Reshape")
                )
    return None


def _with_rest(
    source: ir.Value, cos: ir.Value, sin: ir.Value, result: ir.Value, interleaved: bool
) -> Rotation | None:
    """Extend a rotation of the first part of each head to the whole head."""
    width = static_dim(source, -1)
    if width is None or rank(source) != 4:
        return None
    joined = only_use(result)
    first = _part(source)
    if first is not None and first.start == 0 and first.step == 1 and joined is not None:
        head = static_dim(first.source, -1)
        if is_op(joined, "Concat") and len(joined.inputs) == 2 and _on_last_axis(joined):
            rest = _part(joined.inputs[1])
            if rest == _Part(first.source, width, head or 0, 1) and joined.inputs[0] is result:
                return Rotation(first.source, cos, sin, joined.outputs[0], interleaved, width, head or 0)
    return Rotation(source, cos, sin, result, interleaved, width, width)


def _half_rotated(value: ir.Value) -> ir.Value | None:
    """``x`` where ``value`` is ``concat(-x[h:], x[:h])``."""
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or not _on_last_axis(node):
        return None
    negated = producer(node.inputs[0], "Neg")
    high, low = (_part(negated.inputs[0]) if negated is not None else None), _part(node.inputs[1])
    if high is None or low is None or high.source is not low.source:
        return None
    width = static_dim(low.source, -1)
    if width is None or width % 2:
        return None
    halves = (low.start, low.stop, low.step, high.start, high.stop, high.step)
    return low.source if halves == (0, width // 2, 1, width // 2, width, 1) else None


def _pair_rotated(value: ir.Value) -> ir.Value | None:
    """``x`` where ``value`` is ``stack(-x[1::2], x[0::2]).flatten()``."""
    reshaped = producer(value, "Reshape")
    node = producer(reshaped.inputs[0], "Concat") if reshaped is not None else None
    if node is None or len(node.inputs) != 2 or not _on_last_axis(node):
        return None
    first, second = (producer(item, "Unsqueeze") for item in node.inputs)
    if first is None or second is None or not (_adds_last_axis(first) and _adds_last_axis(second)):
        return None
    negated = producer(first.inputs[0], "Neg")
    odd, even = (_part(negated.inputs[0]) if negated is not None else None), _part(second.inputs[0])
    if odd is None or even is None or odd.source is not even.source:
        return None
    width = static_dim(even.source, -1)
    if width is None or static_dim(value, -1) != width or rank(value) != rank(even.source):
        return None
    steps = (even.start, even.step, odd.start, odd.step)
    return even.source if steps == (0, 2, 1, 2) and even.stop == odd.stop == width else None


def _part(value: ir.Value | None) -> _Part | None:
    """How ``value`` was cut from another value along the last axis, by Slice or by Split."""
    node = producer(value, "Slice", "Split")
    source = node.inputs[0] if node is not None else None
    width = static_dim(source, -1)
    if node is None or source is None or width is None or value is None:
        return None
    if is_op(node, "Slice"):
        bounds = slice_bounds(node)
        if bounds is None or len(bounds) != 1 or bounds[0][0] not in (-1, (rank(source) or 0) - 1):
            return None
        _, start, stop, step = bounds[0]
        start, stop, step = slice(start, stop, step).indices(width)
        return _Part(source, start, stop, step)
    if not _on_last_axis(node):
        return None
    sizes = integers(input_at(node, 1)) or (width // len(node.outputs),) * len(node.outputs)
    index = node.outputs.index(value)
    return _Part(source, sum(sizes[:index]), sum(sizes[: index + 1]), 1)


def _on_last_axis(node: ir.Node) -> bool:
    axis, size = int_attribute(node, "axis", 0), rank(node.outputs[0])
    return axis == -1 or (size is not None and axis == size - 1)


def _adds_last_axis(node: ir.Node) -> bool:
    axes, size = integers(input_at(node, 1)), rank(node.outputs[0])
    return axes == (-1,) or (size is not None and axes == (size - 1,))
