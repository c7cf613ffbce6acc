"""What is known of one value after each batch, in memory that does not grow."""

import numpy as np

from onnxforge.compiler.clipping import chosen_range
from onnxforge.compiler.histogram import Histogram
from onnxforge.passes.activation_range import ActivationRange

_OCTAVES = 120
"""Powers of a token from 2^-60 to 2^60 are told apart."""
_PER_OCTAVE = 128
"""A median of powers is right to a quarter of a percent."""


class NotFinite(ValueError):
    """A value is NaN or infinite on calibration tokens."""


class ActivationTally:
    """The range of one value [..., K] so far."""

    def __init__(self, method: str, percentile: float) -> None:
        """``method`` is one of :data:`onnxforge.compiler.clipping.METHODS`."""
        self._method, self._percentile = method, percentile
        self._low = self._high = np.empty(0, np.float32)
        self._powers = np.zeros(_OCTAVES * _PER_OCTAVE, np.int64)
        self._seen = Histogram() if method != "min-max" else None

    def add(self, rows: np.ndarray) -> None:
        """Count the tokens ``rows``, float32 [T, K].

        Raises:
            NotFinite: an element is NaN or infinite.
        """
        low, high = rows.min(axis=0), rows.max(axis=0)
        if not (np.isfinite(low).all() and np.isfinite(high).all()):
            raise NotFinite("NaN or an infinity on calibration tokens")
        self._low = np.minimum(self._low, low) if self._low.size else low
        self._high = np.maximum(self._high, high) if self._high.size else high
        powers = np.einsum("tk,tk->t", rows, rows).astype(np.float64) / rows.shape[1]
        places = (np.log2(np.maximum(powers, 2.0**-_OCTAVES)) + _OCTAVES / 2) * _PER_OCTAVE
        places = np.clip(places.astype(np.int64), 0, len(self._powers) - 1)
        self._powers += np.bincount(places, minlength=len(self._powers))
        if self._seen is not None:
            self._seen.add(rows)

    def result(self) -> ActivationRange:
        """Everything counted; at least one token was."""
        low, high = self._low.astype(np.float32), self._high.astype(np.float32)
        chosen = None
        if self._seen is not None:
            extent = float(low.min()), float(high.max())
            chosen = chosen_range(self._method, self._seen, extent, self._percentile)
        return ActivationRange(low, high, self._typical(), chosen)

    def _typical(self) -> float:
        """The root of the median power; 0 where half of the tokens carry next to nothing."""
        counted = np.cumsum(self._powers)
        place = int(np.searchsorted(counted, counted[-1] / 2))
        power = 2.0 ** ((place + 0.5) / _PER_OCTAVE - _OCTAVES / 2)
        return float(np.sqrt(power)) if place else 0.0
