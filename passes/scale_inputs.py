"""Even out the channels that a quantized MatMul reads, by a multiplication in front of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.activation_grid import grid_of
from onnxforge.passes.activation_range import ActivationRange, range_of
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import add_array, add_initializer
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.linear_product import LinearProduct, linear_product
from onnxforge.passes.matching import insert_after
from onnxforge.passes.qdq_scheme import TYPES

WHAT = "scaled inputs"
_LEAST = 1e-5


@dataclass(frozen=True)
class ScaleInputs(GraphPass):
    """Multiply each channel of a MatMul's input by 1 / s, and the matrix's rows by s.

    ::

        MatMul(x, W)  ->  MatMul(x * (1 / s), s * W)

    What ``fold-scales`` does for free where the layer in front takes the division, at the price of one
    multiplication where it cannot: behind a norm that a residual reads too, or behind an activation function,
    which is every place in an encoder of BERT's kind. TensorRT computes it together with the rounding that
    follows. Exact in real numbers; ``s`` is normalised to a geometric mean of 1. Needs ``calibrate`` before
    it, and again after it: what is typical of a scaled input is not known.

    Source: Xiao et al. 2022, SmoothQuant (2211.10438), equation 4.
    """

    summary: ClassVar[str] = "SmoothQuant scales as a multiplication, where they fold into nothing"

    alpha: float = 0.65
    """How much of the activations' spread moves into the weights: 0 to 1."""
    below_db: float = 30.0
    """Only inputs of which an ordinary token keeps less than this on an int8 grid."""

    def requires(self, model: ir.Model) -> None:
        """Refuse an exponent that is none.

        Raises:
            PassRefused: ``alpha`` is outside 0..1.
        """
        if not 0 <= self.alpha <= 1:
            raise PassRefused(f"{self.text()}: alpha is {self.alpha}; it must be between 0 and 1")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Scale every input whose products can take it; the others are noted with the reason."""
        readers: dict[ir.Value, list[LinearProduct]] = {}
        for node in model.graph:
            product = linear_product(node)
            if product is not None and range_of(product.data) is not None:
                readers.setdefault(product.data, []).append(product)
        changed = False
        for data, products in readers.items():
            found = range_of(data)
            assert found is not None
            objection = self._objection(found, data, products)
            if objection:
                notes.near_miss(WHAT, data.name, objection)
                continue
            _scale(model.graph, data, products, _scales(found, products, self.alpha))
            notes.match(WHAT, data.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _objection(
        self, found: ActivationRange, data: ir.Value, products: Sequence[LinearProduct]
    ) -> str | None:
        kept = grid_of(found, TYPES["int8"], symmetric=True).ordinary_sqnr_db(found.typical)
        if kept >= self.below_db:
            return f"an ordinary token keeps {kept:.1f} dB as it is; {self.below_db:g} are enough"
        if data.producer() is None:
            return "it is an input of the graph"
        for product in products:
            if product.node.op_type != "MatMul" or product.turned:
                return f"{product.node.name!r} is no plain MatMul; put `canonicalize` before this pass"
            if product.tensor.dtype != ir.DataType.FLOAT:
                return f"the matrix of {product.node.name!r} is {product.tensor.dtype}; float32 is needed"
        return None


def _scales(found: ActivationRange, products: Sequence[LinearProduct], alpha: float) -> np.ndarray:
    """float32 [K], of geometric mean 1; 1 for channels that carry nothing. Reads each matrix once."""
    rows = np.max([np.abs(product.matrix()).max(axis=1) for product in products], axis=0)
    largest = found.largest
    scales = np.maximum(largest, _LEAST) ** alpha / np.maximum(rows, _LEAST) ** (1 - alpha)
    busy = (largest >= _LEAST) & (rows >= _LEAST)
    mean = np.exp(np.log(scales[busy]).mean()) if busy.any() else 1.0
    return np.where(busy, scales / mean, 1).astype(np.float32)


def _scale(graph: ir.Graph, data: ir.Value, products: Sequence[LinearProduct], scales: np.ndarray) -> None:
    factors = add_array(graph, f"{data.name}.factors", (1 / scales).astype(np.float32))
    even = ir.Value(name=f"{data.name}.even", shape=data.shape, type=data.type)
    multiply = ir.Node("", "Mul", (data, factors), outputs=(even,), name=f"{data.name}/even")
    maker = data.producer()
    assert maker is not None
    insert_after(maker, multiply)
    for product in products:
        product.node.replace_input_with(0, even)
        product.node.replace_input_with(1, _scaled(graph, product, scales))


def _scaled(graph: ir.Graph, product: LinearProduct, scales: np.ndarray) -> ir.Value:
    def compute() -> np.ndarray:
        rows: np.ndarray = product.matrix() * scales[:, None]
        return rows

    tensor = lazy_tensor(compute, dtype=product.tensor.dtype, shape=product.size)
    return add_initializer(graph, f"{product.weight.name}.scaled", tensor)
