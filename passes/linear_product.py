"""A product by a constant matrix, in whichever of its spellings it stands in the graph."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant, extents
from onnxforge.passes.matching import input_at, int_attribute, is_op, producer


@dataclass(frozen=True)
class LinearProduct:
    """``data @ W [+ bias]``, with ``W`` [K, N]."""

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    """The stored initializer."""
    tensor: ir.TensorProtocol
    turned: bool
    """It is stored as [N, K]: a tied embedding behind a Transpose, or a Gemm with transB."""
    bias: ir.Value | None = None
    """A Gemm's."""

    @property
    def size(self) -> tuple[int, int]:
        """(K, N)."""
        first, second = extents(self.tensor)
        return (second, first) if self.turned else (first, second)

    def matrix(self) -> np.ndarray:
        """float [K, N]; reads the weight."""
        array = self.tensor.numpy()
        return array.T if self.turned else array


def linear_product(node: ir.Node) -> LinearProduct | None:
    """What ``node`` is, when it multiplies by a constant matrix and does nothing else but add a bias."""
    data, factor = input_at(node, 0), input_at(node, 1)
    if data is None or factor is None or constant(data) is not None:
        return None
    if is_op(node, "MatMul"):
        return _product(node, data, factor, turned=False)
    if is_op(node, "Gemm") and not int_attribute(node, "transA", 0) and _is_unscaled(node):
        return _product(node, data, factor, turned=bool(int_attribute(node, "transB", 0)))
    return None


def _product(node: ir.Node, data: ir.Value, factor: ir.Value, *, turned: bool) -> LinearProduct | None:
    transpose = producer(factor, "Transpose")
    source = factor
    if transpose is not None and transpose.inputs[0] is not None and _turns(transpose):
        source, turned = transpose.inputs[0], not turned
    tensor = constant(source)
    if tensor is None or len(tensor.shape) != 2:
        return None
    return LinearProduct(node, data, source, tensor, turned, input_at(node, 2))


def _turns(transpose: ir.Node) -> bool:
    perm = transpose.attributes.get("perm")
    return perm is None or list(perm.as_ints()) == [1, 0]


def _is_unscaled(node: ir.Node) -> bool:
    factors = (node.attributes.get("alpha"), node.attributes.get("beta"))
    return all(factor is None or factor.as_float() == 1.0 for factor in factors)
