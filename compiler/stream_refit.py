"""The last matrix of a layer, solved: what it would take to give the teacher's stream, by least squares.

::

    x ─ @ W ─ Add ─── stream            x ─ @ W ─ Add ─ norm ─── stream
               │                                   │
             (sum)                               (sum)

The sum is linear in W, so the W that brings it closest to the teacher's is found at once. Unlike a refit that
looks at one matrix alone, this one mends what the layers before it did as well: x and the sum are the
student's own. It is drawn towards the W that is there (ridge), as strongly as held-out text likes it best.
"""

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.matching import is_op, producer

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Tried, in means of the squares of x."""


@dataclass(frozen=True)
class LastProduct:
    """Where a layer's last matrix stands."""

    data: ir.Value
    """x [B, S, K]."""
    weight: ir.Value
    """W [K, N], or its transpose, the initializer."""
    transposed: bool
    total: ir.Value
    """The sum that it goes into [B, S, N]."""


def last_product(end: ir.Value) -> LastProduct | None:
    """The matrix whose product, with or without a bias, is added to the stream that ``end`` is."""
    node = end.producer()
    if node is not None and is_op(node, *_NORMS) and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    if node is None or not is_op(node, "Add"):
        return None
    for operand in node.inputs:
        product = producer(operand, "MatMul") or _behind_bias(operand)
        if product is None or product.inputs[0] is None or product.inputs[1] is None:
            continue
        weight = product.inputs[1]
        turned = producer(weight, "Transpose")
        source = turned.inputs[0] if turned is not None else weight
        if source is not None and constant(source) is not None:
            return LastProduct(product.inputs[0], source, turned is not None, node.outputs[0])
    return None


def _behind_bias(value: ir.Value | None) -> ir.Node | None:
    """The product in ``product + bias``."""
    node = producer(value, "Add")
    if node is None or not any(constant(item) is not None for item in node.inputs):
        return None
    return next((found for item in node.inputs if (found := producer(item, "MatMul"))), None)


@dataclass
class Residual:
    """Sums over real tokens, each weighted by one over the square of its teacher's sum."""

    inputs: np.ndarray
    """float64 [K, K]: of ``x x^T``."""
    cross: np.ndarray
    """float64 [K, N]: of ``x r^T``, with r the teacher's sum less the student's."""
    left: float = field(default=0.0)
    """Of ``r^T r``."""

    def add(self, data: np.ndarray, student: np.ndarray, teacher: np.ndarray) -> None:
        """Count rows: float32 [T, K], [T, N], [T, N]."""
        size = np.maximum(np.square(teacher, dtype=np.float64).sum(axis=1, keepdims=True), 1e-12)
        weight = (1 / np.sqrt(size)).astype(np.float32)
        x, r = data * weight, (teacher - student) * weight
        self.inputs += x.T @ x
        self.cross += x.T @ r
        self.left += float(np.square(r, dtype=np.float64).sum())

    def after(self, change: np.ndarray) -> float:
        """What is left of ``r^T r`` once ``change`` [K, N] is added to W."""
        return float(self.left - 2 * np.sum(change * self.cross) + np.sum(change * (self.inputs @ change)))


def best_change(learned: Residual, held_out: Residual) -> np.ndarray | None:
    """float64 [K, N]: what to add to W; None where held-out text likes no change."""
    mean = float(np.trace(learned.inputs)) / len(learned.inputs)
    if not (np.isfinite(learned.left) and mean > 0):
        return None
    squares, axes = np.linalg.eigh(learned.inputs)
    turned = axes.T @ learned.cross
    best, found = held_out.left, None
    for ridge in _RIDGES:
        change = axes @ (turned / (np.maximum(squares, 0) + ridge * mean)[:, None])
        left = held_out.after(change)
        if left < best:
            best, found = left, change
    return found
