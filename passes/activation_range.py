"""What calibration saw of a value, and where passes find it: on the value itself, never saved."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.activation_range"
LEVELS = 255
"""Steps of an 8-bit grid."""


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

    @property
    def step(self) -> float:
        """The step of an 8-bit grid over :attr:`bounds`; 0 where the tensor holds nothing else."""
        low, high = self.bounds
        return (high - low) / LEVELS

    @property
    def zero_point(self) -> int:
        """The code of zero on that grid, 0 to 255."""
        return round(-self.bounds[0] / self.step) if self.step else 0

    @property
    def ordinary_sqnr_db(self) -> float:
        """Signal to noise of an ordinary token on that grid, whose rounding error is uniform: step^2 / 12.

        A few tokens with massive activations stretch the range and leave all others a handful of levels;
        an average over tokens would not show it, because those few carry most of the power. What a grid over
        a chosen range clips is no part of it.
        """
        noise = self.step**2 / 12
        return float(10 * np.log10(self.typical**2 / noise)) if noise > 0 and self.typical > 0 else 0.0

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
