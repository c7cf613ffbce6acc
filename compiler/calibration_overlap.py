"""How much two texts have in common: a number measured on what was calibrated on flatters the model."""

import numpy as np

LENGTH = 12
"""Tokens of a run; texts of one kind share few of that length by chance."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Shingles:
    """Runs of tokens that were seen, as hashes: less than a byte of memory for a token."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, ids: np.ndarray) -> None:
        """Remember the runs of the sample ``ids`` [T], side by side."""
        self._parts.append(_hashes(ids)[::LENGTH])

    def shared(self, ids: np.ndarray) -> tuple[float, float]:
        """The share of the runs seen that occur in the text ``ids`` [T], and that of the text's tokens which
        lie in a run seen."""
        runs, seen = _hashes(ids), np.concatenate(self._parts or [_hashes(ids[:0])])
        if not len(runs) or not len(seen):
            return 0.0, 0.0
        places = np.flatnonzero(np.isin(runs, seen))
        marks = np.zeros(len(ids) + 1, dtype=np.int64)
        np.add.at(marks, places, 1)
        np.add.at(marks, places + LENGTH, -1)
        return float(np.isin(seen, runs).mean()), float((marks[:-1].cumsum() > 0).mean())


def _hashes(ids: np.ndarray) -> np.ndarray:
    """uint64: one number for each run of LENGTH tokens."""
    count = max(len(ids) - LENGTH + 1, 0)
    found = np.zeros(count, dtype=np.uint64)
    for offset in range(LENGTH):
        found = found * _FACTOR + ids[offset : offset + count].astype(np.uint64) + np.uint64(1)
    return found
