"""The parameters of a Slice, from attributes (before opset 10) or from constant inputs."""

import onnx_ir as ir

from onnxforge.passes.constants import integers
from onnxforge.passes.matching import input_at


def slice_bounds(node: ir.Node) -> tuple[tuple[int, int, int, int], ...] | None:
    """``(axis, start, end, step)`` of a Slice whose parameters are all constant."""
    if "starts" in node.attributes:
        starts: tuple[int, ...] | None = tuple(node.attributes["starts"].as_ints())
        ends: tuple[int, ...] | None = tuple(node.attributes["ends"].as_ints())
        axes = tuple(node.attributes["axes"].as_ints()) if "axes" in node.attributes else None
        steps: tuple[int, ...] | None = None
    else:
        starts, ends = integers(input_at(node, 1)), integers(input_at(node, 2))
        axes, steps = integers(input_at(node, 3)), integers(input_at(node, 4))
        if (axes is None and input_at(node, 3) is not None) or (
            steps is None and input_at(node, 4) is not None
        ):
            return None
    if starts is None or ends is None:
        return None
    axes = axes if axes is not None else tuple(range(len(starts)))
    return tuple(zip(axes, starts, ends, steps or (1,) * len(starts), strict=True))
