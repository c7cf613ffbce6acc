"""Weights that are computed when they are written, so that no pass ever holds the whole model.

A pass that transposes, packs or quantizes a weight builds a new lazy tensor over the old one. The bytes
move once, tensor by tensor, while the artifact is saved.
"""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir


def lazy_tensor(
    compute: Callable[[], np.ndarray],
    *,
    dtype: ir.DataType,
    shape: Sequence[int],
    name: str | None = None,
) -> ir.LazyTensor:
    """A tensor whose value is ``compute()``, checked against ``dtype`` and ``shape`` when it is asked for.

    Nothing is cached: asking twice computes twice, which is what keeps the peak at one tensor.

    Raises (when the value is asked for):
        ValueError: ``compute`` returned another shape or dtype than was declared.
    """
    expected = tuple(shape)

    def evaluate() -> ir.TensorProtocol:
        array = np.asarray(compute(), order="C")
        tensor = ir.tensor(array, dtype=dtype, name=name)
        if tuple(array.shape) != expected:
            raise ValueError(f"weight {name!r}: computed shape {array.shape}, declared {expected}")
        return tensor

    return ir.LazyTensor(evaluate, dtype=dtype, shape=ir.Shape(expected), name=name)
