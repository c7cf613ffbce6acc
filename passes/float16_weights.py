"""Float32 constants as float16: small ones at once, weights while the artifact is written."""

import numpy as np
import onnx_ir as ir

from onnxforge.passes.base import PassRefused
from onnxforge.passes.constants import READABLE_ELEMENTS, extents
from onnxforge.passes.lazy import lazy_tensor

LARGEST = float(np.finfo(np.float16).max)
_MINUS_INFINITY = 1e30
"""A constant beyond this is an attention mask's "minus infinity", which exporters spell as float32's lowest
number; float16's lowest says the same."""


class Float16Weights:
    """The weights of one graph on their way to float16.

    They know of one another for the one case that matters to all: when the first is found that float16 cannot
    hold, the error names every such weight.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self._sources: list[tuple[str, ir.TensorProtocol]] = []

    def half(self, tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        """``tensor`` in float16: lazy for a weight, an array for a small constant.

        Raises (for a weight: when its value is asked for):
            PassRefused: a finite number is beyond float16's largest.
        """
        self._sources.append((name, tensor))
        if not isinstance(tensor, ir.LazyTensor) and tensor.size <= READABLE_ELEMENTS:
            return ir.tensor(self._converted(_without_mask_numbers(tensor.numpy())), name=name)
        return lazy_tensor(
            lambda: self._converted(tensor.numpy()),
            dtype=ir.DataType.FLOAT16,
            shape=extents(tensor),
            name=name,
        )

    def _converted(self, array: np.ndarray) -> np.ndarray:
        if _largest(array) > LARGEST:
            raise PassRefused(self._complaint())
        halves: np.ndarray = array.astype(np.float16)
        return halves

    def _complaint(self) -> str:
        found = []
        for name, tensor in sorted(self._sources, key=lambda item: item[0]):
            largest = _largest(_without_mask_numbers(tensor.numpy()))
            if largest > LARGEST:
                found.append(f"{name} (up to {largest:.6g})")
        return (
            f"convert-float16: float16 ends at {LARGEST:g}, and these weights go beyond: {', '.join(found)}. "
            f"{self._advice}"
        )


def _largest(array: np.ndarray) -> float:
    """The largest finite magnitude that turns infinite in float16, or less."""
    if not array.size:
        return 0.0
    low, high = float(array.min()), float(array.max())
    if np.isfinite([low, high]).all():
        return max(-low, high)
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _without_mask_numbers(array: np.ndarray) -> np.ndarray:
    """Small constants only: "minus infinity" in float16's words."""
    if array.size > READABLE_ELEMENTS:
        return array
    masked = np.isfinite(array) & (np.abs(array) >= _MINUS_INFINITY)
    clipped: np.ndarray = np.where(masked, np.copysign(LARGEST, array), array)
    return clipped
