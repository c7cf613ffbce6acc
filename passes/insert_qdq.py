"""Static W8A8: MatMul in 8 bits on both sides, written as QuantizeLinear and DequantizeLinear."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.activation_range import ActivationRange, range_of
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.channel_quantization import quantized_columns
from onnxforge.passes.constants import add_array, constant, extents
from onnxforge.passes.matching import insert_after, is_op

WHAT = "W8A8 MatMul"


@dataclass(frozen=True)
class InsertQdq(GraphPass):
    """Quantize both operands of MatMuls by a constant matrix, where a static grid serves the activations.

    ::

        MatMul(x, W)   ->   MatMul(DQ(Q(x, step, zero), step, zero), DQ(Wq, steps))

    Activations get one uint8 grid per tensor over their calibrated range (zero is exact); weights one
    symmetric int8 grid per column. The result stays float: ONNX Runtime's CPU provider turns the pattern
    into one int8 product (MatMulIntegerToFloat), whose rows do not depend on one another. The activation
    step is static, so a token's result is the same alone and in a batch, which DynamicQuantizeLinear with
    its one scale per call does not give.

    One grid serves a tensor badly when a few tokens are far larger than the rest. ``min_sqnr_db`` leaves
    such MatMuls float, for a blockwise pass to take up. Run after ``calibrate``.

    Source: Jacob et al. 2017 (1712.05877) for the arithmetic, the ONNX operator specification for the form.
    """

    summary: ClassVar[str] = "static 8-bit activations and weights (QDQ) where a static grid is fine enough"

    min_sqnr_db: float = 20.0
    """Least signal to noise of an ordinary token on the tensor's grid, in dB."""
    min_elements: int = 4096
    """Smaller matrices stay float."""
    skip: str = ""
    """A regular expression; weights and nodes whose name it finds stay float."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a pattern that cannot be read, and a graph that was never calibrated.

        Raises:
            PassRefused: ``skip`` is no regular expression, or no MatMul's input has a calibrated range.
        """
        try:
            re.compile(self.skip)
        except re.error as problem:
            raise PassRefused(f"{self.text()}: skip is no regular expression ({problem})") from problem
        products = [node for node in model.graph if is_op(node, "MatMul") and constant(node.inputs[1])]
        if products and all(range_of(node.inputs[0]) is None for node in products):
            raise PassRefused(f"{self.text()}: no activation has a range; put `calibrate` before this pass")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize what qualifies; the rest is noted with the reason."""
        grids: dict[ir.Value, ir.Value] = {}
        changed = False
        for node in tuple(model.graph):
            if not is_op(node, "MatMul") or (tensor := constant(node.inputs[1])) is None:
                continue
            objection = self._objection(node, tensor)
            if objection is not None:
                notes.near_miss(WHAT, node.name, objection)
                continue
            _quantize(model.graph, node, tensor, grids)
            notes.match(WHAT, node.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _objection(self, node: ir.Node, tensor: ir.TensorProtocol) -> str | None:
        weight, found = node.inputs[1], range_of(node.inputs[0])
        if self.skip and any(re.search(self.skip, n or "") for n in (weight and weight.name, node.name)):
            return f"its name matches skip={self.skip!r}"
        if len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype} of rank {len(tensor.shape)}; a float32 matrix is needed"
        if tensor.size < self.min_elements:
            return f"{tensor.size} elements are fewer than {self.min_elements}"
        if found is None:
            return "its input has no calibrated range"
        if found.ordinary_sqnr_db < self.min_sqnr_db:
            return (
                f"an ordinary token keeps {found.ordinary_sqnr_db:.1f} dB on the grid of the whole range "
                f"(largest {found.largest.max():.3g}, typical {found.typical:.3g}); "
                f"{self.min_sqnr_db:g} dB are needed"
            )
        return None


def _quantize(
    graph: ir.Graph, node: ir.Node, tensor: ir.TensorProtocol, grids: dict[ir.Value, ir.Value]
) -> None:
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    found = range_of(data)
    assert found is not None
    if data not in grids:
        grids[data] = _on_grid(graph, data, found)
    codes, steps = quantized_columns(graph, weight.name or "weight", tensor)
    restored = ir.Value(name=f"{weight.name}.dequantized", shape=ir.Shape(extents(tensor)), type=weight.type)
    axis = [ir.AttrInt64("axis", 1)]
    made = ir.Node(
        "",
        "DequantizeLinear",
        (codes, steps),
        axis,
        outputs=(restored,),
        name=f"{weight.name}/DequantizeLinear",
    )
    graph.insert_before(node, made)
    node.replace_input_with(0, grids[data])
    node.replace_input_with(1, restored)


def _on_grid(graph: ir.Graph, data: ir.Value, found: ActivationRange) -> ir.Value:
    """``data`` rounded to its grid: QuantizeLinear and DequantizeLinear right after it."""
    grid = (
        add_array(graph, f"{data.name}.step", np.array(found.step or 1.0, dtype=np.float32)),
        add_array(graph, f"{data.name}.zero", np.array(found.zero_point, dtype=np.uint8)),
    )
    codes = ir.Value(name=f"{data.name}.q", shape=data.shape, type=ir.TensorType(ir.DataType.UINT8))
    rounded = ir.Value(name=f"{data.name}.dq", shape=data.shape, type=data.type)
    nodes = (
        ir.Node("", "QuantizeLinear", (data, *grid), outputs=(codes,), name=f"{data.name}/QuantizeLinear"),
        ir.Node(
            "", "DequantizeLinear", (codes, *grid), outputs=(rounded,), name=f"{data.name}/DequantizeLinear"
        ),
    )
    anchor = data.producer()
    if anchor is None:
        graph.insert_before(graph[0], nodes)
    else:
        insert_after(anchor, *nodes)
    return rounded
