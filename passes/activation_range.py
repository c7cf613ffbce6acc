"""What calibration saw of a value, and where passes find it: on the value itself, never saved."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.activation_range"
_LEVELS = 255


@dataclass(frozen=True)
class ActivationRange:
    """A value [..., K] over the calibration tokens, real ones only."""

    low: np.ndarray
    """float32 [K]: the smallest value of each channel."""
    high: np.ndarray
    """float32 [K]: the largest value of each channel."""
    typical: float
    """The root mean square of an ordinary token: the median over tokens."""

    @property
    def largest(self) -> np.ndarray:
        """float32 [K]: the largest magnitude of each channel."""
        found: np.ndarray = np.maximum(np.abs(self.low), np.abs(self.high))
        return found

    @property
    def step(self) -> float:
        """The step of an 8-bit grid over the whole range, zero included."""
        span = max(float(self.high.max()), 0.0) - min(float(self.low.min()), 0.0)
        return span / _LEVELS

    @property
    def ordinary_sqnr_db(self) -> float:
        """Signal to noise of an ordinary token on that grid, whose rounding error is uniform: step^2 / 12.

        A few tokens with massive activations stretch the range and leave all others a handful of levels;
        an average over tokens would not show it, because those few carry most of the power.
        """
        noise = self.step**2 / 12
        return float(10 * np.log10(self.typical**2 / noise)) if noise > 0 and self.typical > 0 else 0.0

    def divided(self, scales: np.ndarray) -> "ActivationRange":
        """The range once channel k is divided by ``scales[k]`` > 0; measure what is typical again."""
        return ActivationRange(self.low / scales, self.high / scales, self.typical)


def annotate(value: ir.Value, found: ActivationRange) -> None:
    """Leave what was measured on ``value``."""
    value.meta[_KEY] = found


def range_of(value: ir.Value | None) -> ActivationRange | None:
    """What calibration measured on ``value``, if it did."""
    found = value.meta.get(_KEY) if value is not None else None
    return found if isinstance(found, ActivationRange) else None
