"""What calibration saw of a value, and where passes find it: on the value itself, never saved."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.activation_range"


@dataclass(frozen=True)
class ActivationRange:
    """A value [..., K] over the calibration tokens, real ones only."""

    low: np.ndarray
    """float32 [K]: the smallest value of each channel."""
    high: np.ndarray
    """float32 [K]: the largest value of each channel."""
    typical: float
    """The root mean square of an ordinary token: the median over tokens."""
    chosen: tuple[float, float] | None = None
    """What a grid over the whole tensor covers, where a calibrator clips; None: all that was seen."""

    @property
    def largest(self) -> np.ndarray:
        """float32 [K]: the largest magnitude of each channel."""
        found: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return found

    @property
    def bounds(self) -> tuple[float, float]:
        """The ends of the grid for the whole tensor; zero is always between them."""
        low, high = self.chosen or (float(self.low.min()), float(self.high.max()))
        return min(low, 0.0), max(high, 0.0)

    def divided(self, scales: np.ndarray) -> "ActivationRange":
        """The range once channel k is divided by ``scales[k]`` > 0.

        What is typical, and a chosen range, depend on the values themselves: calibrate again for those.
        """
        return ActivationRange(self.low / scales, self.high / scales, self.typical)


def annotate(value: ir.Value, found: ActivationRange) -> None:
    """Leave what was measured on ``value``."""
    value.meta[_KEY] = found


def range_of(value: ir.Value | None) -> ActivationRange | None:
    """What calibration measured on ``value``, if it did."""
    found = value.meta.get(_KEY) if value is not None else None
    return found if isinstance(found, ActivationRange) else None
