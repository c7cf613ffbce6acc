"""The costs of removal are those of least squares, tried one by one."""

import numpy as np
import pytest

from onnxforge.passes.surgeon import cheapest_removal, damped, refit


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Moments [12, 12] of inputs that say partly the same, and a matrix [12, 5]."""
    rng = np.random.default_rng(0)
    seen = rng.standard_normal((200, 12)) @ rng.standard_normal((12, 12))
    return (seen.T @ seen).astype(np.float32), rng.standard_normal((12, 5)).astype(np.float32)


def cost(moments: np.ndarray, matrix: np.ndarray, gone: np.ndarray) -> float:
    """Of the best that the inputs that stay can do, by the damped moments that the search goes by."""
    kept = np.setdiff1d(np.arange(len(matrix)), gone)
    wide, rows = damped(moments), matrix.astype(np.float64)
    wrong = rows.copy()
    wrong[kept] -= np.linalg.solve(wide[np.ix_(kept, kept)], wide[kept] @ rows)
    return float(np.einsum("kn,kn->", wrong, wide @ wrong))


def test_each_unit_that_goes_is_the_cheapest_one(problem):
    moments, matrix = problem
    labels = np.repeat(np.arange(4), 3)
    found = cheapest_removal(moments, matrix, labels, 3)
    gone: list[int] = []
    for unit, spent in zip(found.order, found.costs, strict=True):
        each = {
            other: cost(moments, matrix, np.flatnonzero(np.isin(labels, [*gone, other])))
            for other in set(range(4)) - set(gone)
        }
        assert unit == min(each, key=lambda other: each[other])
        assert spent == pytest.approx(each[unit], rel=1e-6)
        gone.append(unit)


def test_of_every_class_equally_many_go(problem):
    moments, matrix = problem
    labels = np.repeat(np.arange(6), 2)
    for count, taken in ((2, 2), (3, 2), (4, 4)):
        order = cheapest_removal(moments, matrix, labels, count, classes=2).order
        assert len(order) == taken
        assert sum(unit < 3 for unit in order) == taken / 2


def test_entries_of_no_unit_stay(problem):
    moments, matrix = problem
    labels = np.array([-1, -1, *range(10)])
    assert set(cheapest_removal(moments, matrix, labels, 9).order) < set(range(10))


def test_the_refit_is_that_of_least_squares(problem):
    moments, matrix = problem
    kept = np.arange(3, 12)
    fitted = refit(moments, matrix, kept)
    plain = np.linalg.solve(
        moments[np.ix_(kept, kept)].astype(np.float64), moments[kept].astype(np.float64) @ matrix
    )
    assert np.abs(fitted - plain).max() < 0.05 * np.abs(plain).max()
    np.testing.assert_allclose(refit(moments, matrix, np.arange(12)), matrix, atol=1e-5)
