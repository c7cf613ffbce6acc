"""A probability distribution over token ids that is zero nearly everywhere."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxforge.runtimes.binding import Int64s

Weights = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distribution:
    """Token ids that may come, and how likely each is."""

    ids: Int64s
    """int64 [n], each once."""
    weights: Weights
    """float64 [n], not negative; they need not sum to 1."""

    def draw(self, uniform: float) -> int:
        """The id at `uniform` (0 to 1) of the cumulative weights."""
        cumulative = self.weights.cumsum()
        chosen = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
        return int(self.ids[min(int(chosen), len(self.ids) - 1)])

    def probability(self, token: int) -> float:
        """How likely `token` is; 0 for one that is not listed."""
        return float(self.weights[self.ids == token].sum() / self.weights.sum())

    def above(self, other: "Distribution") -> "Distribution":
        """Where this one is more likely than `other`, by how much: max(0, p - q), with its own scale."""
        rivals = np.zeros(1 + max(int(self.ids.max()), int(other.ids.max())))
        rivals[other.ids] = other.weights / other.weights.sum()
        more = np.maximum(self.weights / self.weights.sum() - rivals[self.ids], 0.0)
        # Nothing is left where both are equal up to rounding, and then a draw was refused by rounding alone.
        return Distribution(self.ids, more) if more.any() else self
