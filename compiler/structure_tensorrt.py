"""What the TensorRT provider asks of a graph, rule by rule.

An explicitly quantized graph: int8 on both sides of a product, zero points of 0, scales that are constants,
one for a tensor of activations and one for each output of a weight; standard operators only. Source: NVIDIA's
documentation of TensorRT 10 and 11 (explicit quantization, strongly typed networks) and of its ONNX parser.
"""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.left_quantizers import QUANTIZERS, multiplications, sides_of, takes_up_int8
from onnxforge.compiler.structure_check import FLOATS, Rule, StructureCheck, listed, operator_name, touches
from onnxforge.compiler.tensorrt_operators import PARSED, SOURCE

_OPSETS = range(9, 25)
_SCALE, _ZERO = 1, 2


def _standard(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """TensorRT knows no operator of another domain: each one would split the engine."""
    foreign = Counter(operator_name(node) for node in nodes if node.domain not in ("", "ai.onnx"))
    return StructureCheck(
        rule="standard operators only",
        found=listed(foreign) or f"all {len(nodes)}",
        held=not foreign,
        required=True,
    )


def _parsed(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    unknown = Counter(operator_name(node) for node in nodes if operator_name(node) not in PARSED)
    kinds = len({operator_name(node) for node in nodes})
    return StructureCheck(
        rule="the parser knows every operator",
        found=listed(unknown) or f"all {kinds} kinds of operator are in the {SOURCE}",
        held=not unknown,
        required=True,
    )


def _known_opset(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    opsets = {node.graph.opset_imports.get("", 0) for node in nodes[:1] if isinstance(node.graph, ir.Graph)}
    return StructureCheck(
        rule=f"the opset is one of {_OPSETS.start} to {_OPSETS.stop - 1}",
        found=", ".join(map(str, sorted(opsets))) or "an empty graph",
        held=all(opset in _OPSETS for opset in opsets),
        required=True,
    )


def _zero_points(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """int8, and a zero point of 0: TensorRT's grids are symmetric."""
    quantizers = [node for node in nodes if node.op_type in QUANTIZERS]
    broken = Counter(f"{objection} ({node.name})" for node in quantizers for objection in _skew(node))
    return StructureCheck(
        rule="quantizers are int8 with zero points of 0",
        found=listed(broken) or f"all {len(quantizers)}",
        held=not broken,
        required=True,
    )


def _static_scales(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """A constant for a whole tensor of activations, or one for each output (the last axis) of a weight."""
    quantizers = [node for node in nodes if node.op_type in QUANTIZERS]
    broken = Counter(f"{objection} ({node.name})" for node in quantizers for objection in _moving(node))
    return StructureCheck(
        rule="scales are constants: one for a tensor, or one for each output of a weight",
        found=listed(broken) or f"all {len(quantizers)}",
        held=not broken,
        required=True,
    )


def _int8_products(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """What stays floating point is no fault, but it is slower, and nobody should have to guess how much."""
    work = {node: multiplications(node) for node in nodes}
    total = sum(work.values()) or 1
    products = [node for node in nodes if work[node]]
    floats = [node for node in products if not takes_up_int8(sides_of(node))]
    share = 1 - sum(work[node] for node in floats) / total
    left = Counter(node.name or "" for node in floats)
    tail = f", not {listed(left)}" if left else ""
    return StructureCheck(
        rule="products by a weight multiply in int8",
        found=f"{len(products) - len(floats)} of {len(products)}, {share:.1%} of the multiplications{tail}",
        held=not floats,
        required=False,
    )


def _one_float(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """Strongly typed engines compute in the types that are written: one kind everywhere means no casts."""
    computing = [node for node in nodes if node.op_type != "Cast"]
    found = Counter(kind.name.lower() for node in computing for kind in FLOATS if touches(node, kind))
    return StructureCheck(
        rule="floating point is float16",
        found=listed(found),
        held=set(found) <= {"float16"},
        required=False,
    )


def _skew(node: ir.Node) -> Iterator[str]:
    if node.op_type == "DynamicQuantizeLinear":
        yield "a grid for every call"
        return
    zero = node.inputs[_ZERO] if len(node.inputs) > _ZERO else None
    codes = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
    kind = codes.dtype if codes is not None else None
    if zero is None and node.op_type == "QuantizeLinear" and "output_dtype" not in node.attributes:
        yield "uint8 by default"
        return
    if kind is not ir.DataType.INT8:
        yield kind.name.lower() if kind is not None else "no known type"
    elif zero is not None and (zero.const_value is None or np.any(zero.const_value.numpy() != 0)):
        yield "a zero point that is not 0"


def _moving(node: ir.Node) -> Iterator[str]:
    if node.op_type == "DynamicQuantizeLinear":
        return
    scale = node.inputs[_SCALE]
    tensor = scale.const_value if scale is not None else None
    if tensor is None:
        yield "a scale that is computed"
        return
    weight = node.inputs[0]
    if tensor.size == 1:
        return
    if weight is None or weight.const_value is None:
        yield "several scales for one tensor of activations"
        return
    axis = node.attributes.get("axis")
    last = len(weight.const_value.shape) - 1
    blocked = node.attributes.get("block_size")
    if (blocked is not None and blocked.as_int()) or axis is None or axis.as_int() not in (last, -1):
        yield "scales along another axis than a weight's outputs"


RULES: tuple[Rule, ...] = (
    _standard, _parsed, _known_opset, _zero_points, _static_scales, _int8_products, _one_float,
)  # fmt: skip
