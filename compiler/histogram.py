"""How often a value's elements fall where, counted batch by batch in memory that does not grow."""

import numpy as np

BINS = 16384
"""Fine enough that 64 bins make one step of an 8-bit grid over the whole range."""
_QUARTER = BINS // 4
_LEAST = 2.0**-60
"""The reach of values that are all next to nothing: bins are never narrower than float32 can divide."""


class Histogram:
    """Counts over [-reach, reach]; the reach doubles, and bins merge in pairs, when an element lies outside.

    The bins before the doubling are halves of bins after it, so every count stays exact.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, dtype=np.int64)
        """int64 [BINS]."""
        self.reach = 0.0

    @property
    def edges(self) -> np.ndarray:
        """float32 [BINS + 1]."""
        return np.linspace(-self.reach, self.reach, BINS + 1, dtype=np.float32)

    def add(self, rows: np.ndarray) -> None:
        """Count every element of ``rows``, finite float32 of any shape."""
        elements = rows.ravel()
        largest = float(np.abs(elements).max(initial=0.0))
        if not self.reach and largest:
            self.reach = max(largest, _LEAST)
        while self.reach < largest:
            self._double()
        if self.reach:
            places = (elements * np.float32(BINS / 2 / self.reach) + np.float32(BINS / 2)).astype(np.int32)
            self.counts += np.bincount(np.clip(places, 0, BINS - 1), minlength=BINS)
        else:
            self.counts[BINS // 2] += elements.size

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(axis=1)
        self.counts = np.zeros(BINS, dtype=np.int64)
        self.counts[_QUARTER:-_QUARTER] = merged
        self.reach *= 2
