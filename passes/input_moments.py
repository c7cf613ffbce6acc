"""Second moments of what a matrix multiplies, and where passes find them: on the value itself, never saved.

For inputs x of a product ``x @ W`` the rounding error E of W [K, N] costs ``tr(E^T H E)`` in the output, with
H the sum of ``x x^T`` over tokens. H is all that GPTQ and AWQ need to know of the data.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.input_moments"


@dataclass(frozen=True, eq=False)
class InputMoments:
    """Sums over the real tokens of calibration, for a value [..., K]."""

    products: np.ndarray
    """float32 [K, K]: the sum of ``x x^T``. May lie on disk: take :meth:`matrix` once, when it is needed."""
    tokens: int
    """How many tokens were summed."""
    divisors: np.ndarray | None = None
    """float32 [K]: what each channel has been divided by since."""

    def matrix(self) -> np.ndarray:
        """H, float32 [K, K], of the value as it is now; a new array."""
        found = np.array(self.products, dtype=np.float32)
        if self.divisors is not None:
            found /= self.divisors[:, None]
            found /= self.divisors[None, :]
        return found

    def powers(self) -> np.ndarray:
        """float32 [K]: the mean square of each channel as it is now."""
        found = np.diagonal(self.products) / np.float32(self.tokens)
        powers: np.ndarray = found if self.divisors is None else found / self.divisors**2
        return powers

    def divided(self, scales: np.ndarray) -> "InputMoments":
        """The moments once channel k is divided by ``scales[k]``. Computes nothing yet."""
        divisors = scales if self.divisors is None else self.divisors * scales
        return InputMoments(self.products, self.tokens, divisors)


def leave_moments(value: ir.Value, found: InputMoments) -> None:
    """Leave what was summed on ``value``."""
    value.meta[_KEY] = found


def moments_of(value: ir.Value | None) -> InputMoments | None:
    """What was summed over ``value``, if it was."""
    found = value.meta.get(_KEY) if value is not None else None
    return found if isinstance(found, InputMoments) else None


def forget_moments(value: ir.Value) -> None:
    """Drop what was summed: the graph in front of ``value`` has changed."""
    value.meta.pop(_KEY, None)


def together(parts: Iterable[InputMoments]) -> np.ndarray:
    """H, float32 [K, K], of a matrix that multiplies several values."""
    matrices = (part.matrix() for part in parts)
    total = next(matrices)
    for matrix in matrices:
        total += matrix
    return total
