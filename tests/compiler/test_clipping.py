"""Which range a grid covers: each method does what it is named for, on a histogram that stays small."""

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxforge.compiler.clipping import METHODS, chosen_range
from onnxforge.compiler.histogram import BINS, Histogram


def normal(count=200_000, seed=0):
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def massive():
    """Ordinary elements, and two that are far larger, as at the first token of a decoder."""
    return np.append(normal(), np.float32([3000, -500]))


def histogram(elements, parts=5):
    seen = Histogram()
    for part in np.array_split(elements, parts):
        seen.add(part)
    return seen


def chosen(method, elements, percentile=99.99):
    extent = float(elements.min()), float(elements.max())
    return chosen_range(method, histogram(elements), extent, percentile)


def error(elements, low, high):
    """The mean squared error of an 8-bit grid over [low, high], by doing it."""
    low, high = min(low, 0), max(high, 0)
    step = (high - low) / 255
    zero = round(-low / step)
    codes = np.clip(np.rint(elements / step) + zero, 0, 255)
    return float(np.mean(((codes - zero) * step - elements) ** 2))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40), st.integers(1, 4))
def test_no_element_is_lost_and_batches_make_no_difference_to_the_counts(elements, parts):
    array = np.array(elements, np.float32)
    seen = histogram(array, parts)
    assert seen.counts.sum() == len(array)
    assert len(seen.counts) == BINS
    edges = seen.edges
    assert edges[0] <= array.min()
    assert edges[-1] >= array.max()
    below_zero = int((array < 0).sum())
    near = np.abs(array) < 1e-3 * seen.reach
    assert abs(int(seen.counts[: BINS // 2].sum()) - below_zero) <= near.sum()


def test_growing_batches_need_no_more_memory():
    seen = Histogram()
    for power in range(-30, 31):
        seen.add(normal(1000, seed=power + 30) * np.float32(2.0**power))
    assert seen.counts.sum() == 61_000
    assert seen.counts.size == BINS
    centre = seen.counts[BINS // 2 - 8 : BINS // 2 + 8].sum()
    assert centre > 45_000  # what was counted early has moved to the middle


def test_min_max_clips_nothing():
    assert chosen("min-max", massive()) is None


def test_a_percentile_is_that_of_the_elements():
    elements = normal()
    low, high = chosen("percentile", elements, percentile=99.0)
    np.testing.assert_allclose([low, high], np.quantile(elements, [0.005, 0.995]), atol=0.01)


def test_entropy_clips_a_tail_and_keeps_the_bulk():
    elements = np.random.default_rng(1).laplace(size=100_000).astype(np.float32)
    low, high = chosen("entropy", elements)
    assert np.quantile(elements, 0.001) > low > elements.min()
    assert np.quantile(elements, 0.999) < high < elements.max()


@pytest.mark.parametrize(
    "elements",
    [
        normal(),
        massive(),
        np.random.default_rng(2).laplace(size=100_000).astype(np.float32),
        np.random.default_rng(3).gamma(2.0, size=100_000).astype(np.float32) - np.float32(0.3),
        np.maximum(normal(), 0),
    ],
    ids=["normal", "massive", "laplace", "skewed", "sparse"],
)
def test_least_squares_is_never_beaten(elements):
    extent = float(elements.min()), float(elements.max())
    best = error(elements, *chosen("mse", elements))
    rivals = [extent, *(chosen(method, elements) for method in ("percentile", "entropy"))]
    rivals += [(extent[0] * share, extent[1] * share) for share in (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)]
    assert best <= 1.01 * min(error(elements, *rival) for rival in rivals)


def test_least_squares_clips_a_bell_and_spares_massive_elements():
    bell, spared = normal(), massive()
    assert error(bell, *chosen("mse", bell)) < 0.9 * error(bell, float(bell.min()), float(bell.max()))
    assert chosen("mse", spared) == pytest.approx((-500, 3000), rel=1e-2)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 2.5, -1.0])
def test_constant_values_do_not_break_a_method(method, value):
    found = chosen(method, np.full(100, value, np.float32))
    assert found is None or all(np.isfinite(found))


def test_nothing_is_printed():
    with redirect_stdout(io.StringIO()) as said:
        chosen("percentile", normal(1000))
        chosen("entropy", normal(1000))
    assert said.getvalue() == ""


def test_an_unknown_method_is_an_error():
    with pytest.raises(KeyError, match="average"):
        chosen("average", normal(10))
