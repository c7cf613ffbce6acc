"""QuantizeLinear and DequantizeLinear that no kernel took up: each runs by itself, beside a float operator.

A quantized product that does not fuse is slower than a float one: its weight is dequantized in every call.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

QUANTIZE, DEQUANTIZE = ("QuantizeLinear", "DynamicQuantizeLinear"), "DequantizeLinear"
QUANTIZERS = (*QUANTIZE, DEQUANTIZE)
_FLOAT_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")
_INTEGER_PRODUCTS = (
    "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulInteger", "QLinearMatMul", "QGemm",
)  # fmt: skip
_HANDED_ON = ("Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators that only hand a value on to the one that computes with it."""
_EIGHT_BITS = (ir.DataType.INT8, ir.DataType.UINT8)
_FOUR_BITS = (ir.DataType.INT4, ir.DataType.UINT4)


@dataclass(frozen=True)
class LeftQuantizer:
    """One quantizer that is left in the graph."""

    node: str
    op_type: str
    beside: str
    """The float operator that reads what it restores (or whose result it rounds)."""
    beside_op: str
    weight_bytes: int
    """Of the integers that it restores, where they are a weight."""
    share: float
    """Of the graph's multiplications by weights, in the operator beside it: 0 to 1."""
    why: str


@dataclass(frozen=True)
class Sides:
    """A product by a matrix, and the DequantizeLinear in front of each operand, if there is one."""

    node: ir.Node
    data: ir.Node | None
    weight: ir.Node | None


Fuses = Callable[[Sides], bool]
"""Whether a provider will take up the quantizers around a product."""


def never(_: Sides) -> bool:
    """For a graph as it was loaded: what could fuse has done so."""
    return False


def takes_up_weights_alone(sides: Sides) -> bool:
    """ONNX Runtime makes MatMulNBits of it when it loads the graph, on CPU and CUDA."""
    codes = sides.weight.inputs[0] if sides.weight is not None else None
    tensor = codes.const_value if codes is not None else None
    direct = sides.weight is not None and sides.node.inputs[1] is sides.weight.outputs[0]
    return (
        sides.data is None and tensor is not None and direct and tensor.dtype in (*_EIGHT_BITS, *_FOUR_BITS)
    )


def takes_up_int8(sides: Sides) -> bool:
    """TensorRT multiplies in int8 where both operands come from a DequantizeLinear of int8."""
    found = [side.inputs[0] for side in (sides.data, sides.weight) if side is not None]
    kinds = [
        value.const_value.dtype if value.const_value is not None else value.dtype for value in found if value
    ]
    return kinds == [ir.DataType.INT8, ir.DataType.INT8]


def count_quantizers(nodes: Iterable[ir.Node]) -> int:
    """How many QuantizeLinear, DynamicQuantizeLinear and DequantizeLinear there are."""
    return sum(node.op_type in QUANTIZERS for node in nodes)


def integer_products(nodes: Iterable[ir.Node]) -> Mapping[str, int]:
    """How many products of each integer kernel there are; MatMulNBits with what it does to activations."""
    return dict(sorted(Counter(_kernel(node) for node in nodes if node.op_type in _INTEGER_PRODUCTS).items()))


def left_quantizers(
    nodes: Iterable[ir.Node], provider: str, fuses: Fuses = never
) -> tuple[LeftQuantizer, ...]:
    """Every quantizer of a graph's ``nodes`` that stands beside a float operator, in graph order."""
    nodes = tuple(nodes)
    work = {node: multiplications(node) for node in nodes}
    total = sum(work.values()) or 1
    found = []
    for node in nodes:
        if node.op_type not in QUANTIZERS:
            continue
        for reader in _readers(node):
            sides = sides_of(reader)
            if fuses(sides):
                continue
            found.append(
                LeftQuantizer(
                    node=node.name or "",
                    op_type=node.op_type,
                    beside=reader.name or reader.op_type,
                    beside_op=reader.op_type,
                    weight_bytes=_weight_bytes(node),
                    share=work[reader] / total,
                    why=_why(sides, provider),
                )
            )
    return tuple(found)


def sides_of(node: ir.Node) -> Sides:
    """The quantizers in front of a product's two operands; none for another operator."""
    if node.op_type not in _FLOAT_PRODUCTS:
        return Sides(node, None, None)
    return Sides(node, _restorer(node.inputs[0]), _restorer(node.inputs[1]))


def _readers(quantizer: ir.Node) -> Iterator[ir.Node]:
    """The float operators that compute with what ``quantizer`` restores, or with what is restored from it."""
    if quantizer.op_type != DEQUANTIZE:
        for user, _ in quantizer.outputs[0].uses():
            if user.op_type == DEQUANTIZE:
                yield from _readers(user)
        return
    for user, _ in quantizer.outputs[0].uses():
        yield from _computing(user)


def _computing(node: ir.Node) -> Iterator[ir.Node]:
    if node.op_type in _HANDED_ON and node.outputs[0].uses():
        for user, _ in node.outputs[0].uses():
            yield from _computing(user)
    elif node.op_type not in QUANTIZE:
        yield node


def _restorer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear behind ``value``."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in _HANDED_ON and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node if node is not None and node.op_type == DEQUANTIZE else None


def multiplications(node: ir.Node) -> int:
    """Multiplications by a weight for one row of input."""
    if node.op_type == "MatMulNBits":
        return node.attributes["K"].as_int() * node.attributes["N"].as_int()
    if node.op_type not in (*_FLOAT_PRODUCTS, *_INTEGER_PRODUCTS):
        return 0
    return max((_matrix(value) for value in node.inputs if value is not None), default=0)


def _matrix(value: ir.Value) -> int:
    """The elements of the constant matrix behind ``value``; 0 where there is none."""
    node = value.producer()
    while node is not None and (node.op_type in _HANDED_ON or node.op_type == DEQUANTIZE):
        if node.inputs[0] is None:
            return 0
        value = node.inputs[0]
        node = value.producer()
    tensor = value.const_value
    return tensor.size if tensor is not None and len(tensor.shape) == 2 else 0


def _weight_bytes(quantizer: ir.Node) -> int:
    codes = quantizer.inputs[0]
    tensor = codes.const_value if codes is not None else None
    return tensor.nbytes if tensor is not None else 0


def _kernel(node: ir.Node) -> str:
    if node.op_type != "MatMulNBits":
        return node.op_type
    level = node.attributes.get("accuracy_level")
    return f"MatMulNBits (accuracy_level {level.as_int() if level is not None else 0})"


def _why(sides: Sides, provider: str) -> str:
    """The reason, as far as the form of the product tells it."""
    node, data, weight = sides.node, sides.data, sides.weight
    if data is None and weight is None:
        return f"no integer kernel computes {node.op_type}"
    if data is not None and weight is None:
        return "its other operand is float: an integer product needs both"
    if data is None:
        kind = _kind(weight)
        if kind not in (*_EIGHT_BITS, *_FOUR_BITS):
            return f"there is no kernel for {_spelled(kind)} weights"
        return (
            f"{provider} took up no weights alone here: MatMulNBits wants a constant matrix, read by it only"
        )
    return _why_both(sides, provider)


def _why_both(sides: Sides, provider: str) -> str:
    node, data, weight = sides.node, _kind(sides.data), _kind(sides.weight)
    if data not in _EIGHT_BITS:
        return f"there is no kernel for {_spelled(data)} activations"
    if weight not in _EIGHT_BITS:
        return f"no kernel multiplies 8-bit activations by {_spelled(weight)} weights"
    if "Gemm" in node.op_type:
        return "there is no integer Gemm with a float result (MatMul and Add over three axes have one)"
    for value in node.inputs[:2]:
        maker = value.producer() if value is not None else None
        if maker is not None and maker.op_type in _HANDED_ON:
            return f"{maker.op_type} stands between DequantizeLinear and the product"
    return f"{provider} has no int8 product that takes up this form"


def _kind(restorer: ir.Node | None) -> ir.DataType | None:
    codes = restorer.inputs[0] if restorer is not None else None
    if codes is None:
        return None
    return codes.const_value.dtype if codes.const_value is not None else codes.dtype


def _spelled(kind: ir.DataType | None) -> str:
    return kind.name.lower() if kind is not None else "untyped"
