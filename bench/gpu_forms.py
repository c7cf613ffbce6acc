"""The graph forms that one quantized product can have, as small models: what `gpu.py` times at every size.

    x [M, K] --+-- product with W_0 --> y_0 [M, N]        W_0 ... W_R: the same numbers, turned by columns;
               +-- product with W_1 --> y_1               together larger than any cache of the device
               +-- ...

A real step reads each weight once. One product that is run again and again would be timed with its weight in
the last cache, and mostly by its launch; R products with weights of their own are not. Activations are
quantized once for all of them, where a form quantizes activations.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCK = 32
_MOST_COPIES = 64
_ACTIVATION_SCALE = 0.03
"""Inputs are drawn from a standard normal distribution: int8 with this scale reaches 3.8 deviations."""
_MIXED = {"ep.cuda.fpa_intb_gemm": "1"}
_MS = "com.microsoft"


@dataclass(frozen=True)
class Form:
    """One way to say the product."""

    key: str
    summary: str
    stored: float
    """Bytes of a weight's element, with its scales of 2 bytes each."""
    bits: int
    """Of a stored weight: forms of fewer bits are no rivals of those of more."""
    session: Mapping[str, str] = field(default_factory=dict)


FORMS = (
    Form("A-fp16", "MatMul, float16", 2.0, 16),
    Form("B-qdq-w8a8", "QuantizeLinear and DequantizeLinear on both sides of MatMul", 1.0, 8),
    Form("C-dq8-channel", "DequantizeLinear of int8, a scale per column, then MatMul", 1.0, 8),
    Form("D-dq8-block32", "DequantizeLinear of int8, a scale per 32 rows, then MatMul", 1 + 2 / BLOCK, 8),
    Form("E-nbits8", "MatMulNBits, 8 bits", 1 + 2 / BLOCK, 8),
    Form("F-nbits8-mixed", "MatMulNBits, 8 bits, mixed GEMM", 1 + 2 / BLOCK, 8, _MIXED),
    Form("G-matmulinteger", "QuantizeLinear, MatMulInteger, Cast, Mul", 1.0, 8),
    Form("H-nbits4", "MatMulNBits, 4 bits", 0.5 + 2 / BLOCK, 4),
    Form("I-nbits4-mixed", "MatMulNBits, 4 bits, mixed GEMM", 0.5 + 2 / BLOCK, 4, _MIXED),
)


@dataclass(frozen=True)
class Weight:
    """A float32 matrix [K, N] and, asked for when needed, its integers and scales."""

    values: np.ndarray

    def per_column(self) -> tuple[np.ndarray, np.ndarray]:
        """int8 [K, N] and float32 [N]."""
        scales = np.abs(self.values).max(axis=0) / 127
        return np.clip(np.rint(self.values / scales), -127, 127).astype(np.int8), scales

    def per_block(self, bits: int) -> tuple[np.ndarray, np.ndarray]:
        """int8 [K/32, 32, N] within ``bits`` bits and float32 [K/32, N]."""
        inner, columns = self.values.shape
        blocks = self.values.reshape(inner // BLOCK, BLOCK, columns)
        most = 2 ** (bits - 1) - 1
        scales = np.maximum(np.abs(blocks).max(axis=1), 1e-8) / most
        whole = np.clip(np.rint(blocks / scales[:, None]), -most, most).astype(np.int8)
        return whole, scales


def drawn(inner: int, columns: int, seed: int = 0) -> Weight:
    """A weight as large models have them: standard deviation 0.02."""
    rng = np.random.default_rng(seed)
    return Weight(rng.standard_normal((inner, columns), dtype=np.float32) * np.float32(0.02))


def copies_for(inner: int, columns: int, budget: int) -> int:
    """How many weights of 2 bytes an element make ``budget`` bytes together; at least one, at most 64."""
    return min(max(-(-budget // (2 * inner * columns)), 1), _MOST_COPIES)


def form_model(form: Form, weight: Weight, copies: int, float_type: type[np.floating]) -> onnx.ModelProto:
    """The form with ``copies`` products; inputs, outputs and scales are ``float_type``."""
    makers: dict[str, Callable[[_Graph, Weight], Callable[[int], None]]] = {
        "A": _float,
        "B": partial(_dequantized, block=False, activations=True),
        "C": partial(_dequantized, block=False, activations=False),
        "D": partial(_dequantized, block=True, activations=False),
        "G": _integer,
    }
    graph = _Graph(float_type)
    add = makers.get(form.key[0], partial(_packed, bits=form.bits))(graph, weight)
    for copy in range(copies):
        add(copy)
    return graph.model(*weight.values.shape, copies)


class _Graph:
    def __init__(self, float_type: type[np.floating]) -> None:
        self.float_type = float_type
        self.kind = helper.np_dtype_to_tensor_dtype(np.dtype(float_type))
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def scale(self, name: str, values: np.ndarray | float) -> str:
        return self.constant(name, np.asarray(values, self.float_type))

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        domain = _MS if op_type == "MatMulNBits" else ""
        name = f"{op_type}_{output}"
        self._nodes.append(
            helper.make_node(op_type, inputs, [output], name=name, domain=domain, **attributes)
        )
        return output

    def quantized_input(self) -> str:
        scale = self.scale("x_scale", _ACTIVATION_SCALE)
        zero = self.constant("x_zero", np.array(0, np.int8))
        return self.node("QuantizeLinear", ["x", scale, zero], "x_int8")

    def model(self, inner: int, columns: int, copies: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self._nodes,
            "form",
            [helper.make_tensor_value_info("x", self.kind, ["M", inner])],
            [helper.make_tensor_value_info(f"y_{i}", self.kind, ["M", columns]) for i in range(copies)],
            self._constants,
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def _float(graph: _Graph, weight: Weight) -> Callable[[int], None]:
    values = weight.values.astype(graph.float_type)

    def add(copy: int) -> None:
        graph.node("MatMul", ["x", graph.constant(f"w_{copy}", _turned(values, copy))], f"y_{copy}")

    return add


def _dequantized(graph: _Graph, weight: Weight, block: bool, activations: bool) -> Callable[[int], None]:
    whole, scales = weight.per_block(8) if block else weight.per_column()
    whole = whole.reshape(weight.values.shape)
    where = {"axis": 0, "block_size": BLOCK} if block else {"axis": 1}
    given = "x"
    if activations:
        quantized = graph.quantized_input()
        given = graph.node("DequantizeLinear", [quantized, "x_scale", "x_zero"], "x_again")

    def add(copy: int) -> None:
        stored = graph.constant(f"w_{copy}", _turned(whole, copy))
        by = graph.scale(f"s_{copy}", _turned(scales, copy))
        read = graph.node("DequantizeLinear", [stored, by], f"d_{copy}", **where)
        graph.node("MatMul", [given, read], f"y_{copy}")

    return add


def _packed(graph: _Graph, weight: Weight, bits: int) -> Callable[[int], None]:
    """[N, K/32, bytes of a block], unsigned around 2^(bits-1), the lower half of a byte first."""
    whole, scales = weight.per_block(bits)
    codes = (whole.astype(np.int16) + 2 ** (bits - 1)).astype(np.uint8).transpose(2, 0, 1)
    if bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    codes, by = np.ascontiguousarray(codes), np.ascontiguousarray(scales.T)
    inner, columns = weight.values.shape
    said = {"K": inner, "N": columns, "bits": bits, "block_size": BLOCK}

    def add(copy: int) -> None:
        stored = graph.constant(f"w_{copy}", np.roll(codes, copy, axis=0))
        scale = graph.scale(f"s_{copy}", np.roll(by, copy, axis=0))
        graph.node("MatMulNBits", ["x", stored, scale], f"y_{copy}", **said)

    return add


def _integer(graph: _Graph, weight: Weight) -> Callable[[int], None]:
    whole, scales = weight.per_column()
    quantized = graph.quantized_input()

    def add(copy: int) -> None:
        stored = graph.constant(f"w_{copy}", _turned(whole, copy))
        by = graph.constant(f"s_{copy}", _turned((_ACTIVATION_SCALE * scales).astype(np.float32), copy))
        product = graph.node("MatMulInteger", [quantized, stored], f"i_{copy}")
        wide = graph.node("Cast", [product], f"f_{copy}", to=TensorProto.FLOAT)
        scaled = graph.node("Mul", [wide, by], f"m_{copy}")
        graph.node("Cast", [scaled], f"y_{copy}", to=graph.kind)

    return add


def _turned(values: np.ndarray, copy: int) -> np.ndarray:
    """Columns moved on by ``copy``: other memory, the same numbers."""
    return np.roll(values, copy, axis=-1)
