"""How numbers are distributed: mean, extremes and the percentiles that llama-perplexity prints."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (99.9, 99.0, 95.0, 90.0, 50.0, 10.0, 5.0, 1.0, 0.1)


@dataclass(frozen=True)
class Spread:
    """One number per token, summed up."""

    mean: float
    error: float
    """Standard error of the mean."""
    maximum: float
    minimum: float
    percentiles: Mapping[str, float] = field(default_factory=dict)
    """By text: ``99.9`` ... ``0.1``, linearly interpolated; ``50.0`` is the median."""

    @property
    def median(self) -> float:
        """The middle."""
        return self.percentiles["50.0"]


def spread(values: np.ndarray) -> Spread:
    """The spread of ``values`` [N], N at least 1."""
    found = np.percentile(values, PERCENTILES)
    return Spread(
        mean=float(values.mean()),
        error=standard_error(values),
        maximum=float(values.max()),
        minimum=float(values.min()),
        percentiles={str(p): float(value) for p, value in zip(PERCENTILES, found, strict=True)},
    )


def standard_error(values: np.ndarray) -> float:
    """Of the mean of ``values`` [N]; 0 for a single one."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
