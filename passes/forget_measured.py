"""Forget what was measured of a graph: it no longer holds once weights or the nodes before have changed."""

import onnx_ir as ir

from onnxforge.passes.input_gradients import forget_gradients
from onnxforge.passes.input_moments import forget_moments


def forget_measured(graph: ir.Graph) -> None:
    """Drop moments and gradients from every value; moments lie on disk until nothing holds them."""
    for node in graph:
        for value in node.outputs:
            forget_moments(value)
            forget_gradients(value)
