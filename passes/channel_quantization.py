"""Round-to-nearest int8 weights with one symmetric grid per output column."""

import threading

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_initializer, extents
from onnxforge.passes.lazy import lazy_tensor

_LARGEST = 127


def quantize_columns(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 [K, N] and float32 [N] for a float weight [K, N]: ``codes * steps`` is nearest to it.

    Codes stay within 127 of zero on both sides, as kernels that multiply by int8 expect.
    """
    steps = np.abs(weight).max(axis=0).astype(np.float32) / _LARGEST
    steps = np.where(steps == 0, np.float32(1), steps)
    codes = np.clip(np.rint(weight / steps), -_LARGEST, _LARGEST).astype(np.int8)
    return codes, steps


def quantized_columns(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> tuple[ir.Value, ir.Value]:
    """Initializers ``codes`` and ``steps`` of a matrix, both computed when they are written."""
    both = _Both(tensor)
    shape = extents(tensor)
    codes = lazy_tensor(both.codes, dtype=ir.DataType.INT8, shape=shape)
    steps = lazy_tensor(both.steps, dtype=ir.DataType.FLOAT, shape=shape[1:])
    return add_initializer(graph, f"{name}.int8", codes), add_initializer(graph, f"{name}.steps", steps)


class _Both:
    """Codes and steps from one reading of the weight; only the small steps are ever kept."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self._tensor = tensor
        self._steps: np.ndarray | None = None
        self._lock = threading.Lock()

    def codes(self) -> np.ndarray:
        codes, steps = quantize_columns(self._tensor.numpy())
        with self._lock:
            self._steps = steps
        return codes

    def steps(self) -> np.ndarray:
        with self._lock:
            if self._steps is not None:
                return self._steps
        return quantize_columns(self._tensor.numpy())[1]
