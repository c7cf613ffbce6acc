"""One static grid for a whole activation tensor, from its calibrated range."""

from dataclasses import dataclass

import numpy as np

from onnxforge.passes.activation_range import ActivationRange
from onnxforge.passes.qdq_scheme import IntegerType


@dataclass(frozen=True)
class ActivationGrid:
    """``(code - zero) * step``."""

    step: float
    zero: int
    type: IntegerType

    def ordinary_sqnr_db(self, typical: float) -> float:
        """Signal to noise of a token whose root mean square is ``typical``; rounding errors are uniform.

        A few tokens with massive activations stretch the range and leave all others a handful of levels;
        an average over tokens would not show it, because those few carry most of the power.
        """
        noise = self.step**2 / 12
        return float(10 * np.log10(typical**2 / noise)) if noise > 0 and typical > 0 else 0.0


def grid_of(found: ActivationRange, kind: IntegerType, *, symmetric: bool) -> ActivationGrid:
    """The grid over the bounds of ``found``: zero is exact on it, and what lies beyond them is clipped."""
    low, high = found.bounds
    if symmetric:
        return ActivationGrid(max(high, -low) / kind.reach or 1.0, kind.middle, kind)
    step = (high - low) / (kind.most - kind.least) or 1.0
    zero = int(np.clip(np.rint(kind.least - low / step), kind.least, kind.most))
    return ActivationGrid(step, zero, kind)
