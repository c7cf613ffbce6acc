"""Which part of a tensor's range an 8-bit grid is to cover: what lies outside is clipped to its ends."""

import contextlib
import io

import numpy as np

from onnxforge.compiler.histogram import BINS, Histogram

LEVELS = 255
"""Steps of the grid that ``entropy`` and ``mse`` choose for: 8 bits."""
METHODS = ("min-max", "percentile", "entropy", "mse")
_ENTROPY_BINS = 2048
_SWEEPS = 50


def chosen_range(
    method: str, seen: Histogram, extent: tuple[float, float], percentile: float
) -> tuple[float, float] | None:
    """The ends of the range that ``method`` chooses of ``seen``; None for min-max, which clips nothing.

    ``extent`` are the smallest and the largest element; no method goes beyond.

    Raises:
        KeyError: no such method.
    """
    if method not in METHODS:
        raise KeyError(method)
    if method == "min-max" or not seen.reach:
        return None
    if method == "mse":
        return least_squares(seen, extent)
    return _onnx_runtime(method, seen, extent, percentile)


def least_squares(seen: Histogram, extent: tuple[float, float]) -> tuple[float, float]:
    """The range whose grid has the least squared error: clipping outside, rounding inside.

    Both ends are edges of the histogram. Given one end, the best other one is found over all edges at once;
    the two take turns until neither moves. That starts from the whole range and from the best symmetric one,
    for the error may have several valleys, and the better result counts. The criterion is that of Choukroun
    et al. 2019 (1902.06822).
    """
    half = BINS // 2
    low = _Side(seen.counts[:half][::-1], seen.reach, max(-extent[0], 0.0))
    high = _Side(seen.counts[half:], seen.reach, max(extent[1], 0.0))
    every = np.arange(half + 1)
    symmetric = int(_error(low, every, high, every).argmin())
    found = []
    for ends in ((half, half), (symmetric, symmetric)):
        for _ in range(_SWEEPS):
            before = ends
            ends = (int(_error(low, every, high, np.array(ends[1])).argmin()), ends[1])
            ends = (ends[0], int(_error(low, np.array(ends[0]), high, every).argmin()))
            if ends == before:
                break
        found.append((float(_error(low, np.array(ends[0]), high, np.array(ends[1]))), ends))
    _, best = min(found)
    return 0.0 - float(low.ends[best[0]]), float(high.ends[best[1]])


class _Side:
    """The elements on one side of zero, by their distance to it; an end is the index of an edge."""

    def __init__(self, counts: np.ndarray, reach: float, extent: float) -> None:
        """``counts`` go outward from zero to ``reach``; no element is further away than ``extent``."""
        self.width = reach / len(counts)
        distances = (np.arange(len(counts)) + 0.5) * self.width
        moments = [np.cumsum(np.r_[0.0, counts * distances**power]) for power in (0, 1, 2)]
        self.count, _, self.squares = moments
        self.ends = np.minimum(np.arange(len(counts) + 1) * self.width, extent)
        count, total, squares = (moment[-1] - moment for moment in moments)
        self.clipped = np.maximum(self.ends**2 * count - 2 * self.ends * total + squares, 0.0)
        """float64: the squared error of what lies beyond each end and is moved onto it."""

    def rounded(self, end: np.ndarray, step: np.ndarray) -> np.ndarray:
        """The squared error of rounding what lies inside: an element nearer to zero than half a step becomes
        zero, and the error of the others is uniform, step^2 / 12 on average."""
        near = np.minimum(np.rint(step / 2 / self.width).astype(np.int64), end)
        found: np.ndarray = self.squares[near] + (self.count[end] - self.count[near]) * step**2 / 12
        return found


def _error(low: _Side, lows: np.ndarray, high: _Side, highs: np.ndarray) -> np.ndarray:
    """The squared error of each pair of ends; one of the two may be a scalar."""
    step = (low.ends[lows] + high.ends[highs]) / LEVELS
    clipped = low.clipped[lows] + high.clipped[highs]
    error: np.ndarray = clipped + low.rounded(lows, step) + high.rounded(highs, step)
    return error


def _onnx_runtime(
    method: str, seen: Histogram, extent: tuple[float, float], percentile: float
) -> tuple[float, float]:
    """What ONNX Runtime's own calibrator chooses.

    It is given the finished histogram in place of the arrays that it would count itself: its bins are of the
    width that the first batch asks for, and their number grows without a limit when a later one is larger.
    The time of its entropy search grows with the square of the bins; it gets at most 2,048, so that an end
    may lie anywhere in the outer seven eighths of the range.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    counts, edges = seen.counts, seen.edges
    if method == "entropy":
        used = int(np.ceil(max(-extent[0], extent[1]) / seen.reach * BINS / 2))
        merged = -(-2 * used // _ENTROPY_BINS)
        used = -(-used // merged) * merged
        counts = counts[BINS // 2 - used : BINS // 2 + used].reshape(-1, merged).sum(axis=1)
        edges = edges[BINS // 2 - used : BINS // 2 + used + 1 : merged]
    collector = HistogramCollector(method, False, len(counts), LEVELS, percentile, "same")
    ends = (np.float32(end) for end in extent)
    collector.histogram_dict["value"] = (counts, edges, *ends, np.float32(seen.reach))
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does; stdout is for results
        low, high, *_ = collector.compute_collection_result()["value"]
    return float(low), float(high)
