"""One grid over a calibrated range: zero is exact on it, and its ends are codes."""

import numpy as np
import pytest

from onnxforge.passes.activation_grid import grid_of
from onnxforge.passes.activation_range import ActivationRange
from onnxforge.passes.qdq_scheme import TYPES


def seen(low: float, high: float, typical: float = 1.0) -> ActivationRange:
    return ActivationRange(np.array([low], np.float32), np.array([high], np.float32), typical)


@pytest.mark.parametrize(
    ("low", "high", "kind", "symmetric", "step", "zero"),
    [
        (-2, 3, "uint8", False, 5 / 255, 102),
        (1, 4, "uint8", False, 4 / 255, 0),
        (-4, -1, "uint8", False, 4 / 255, 255),
        (-2, 3, "int8", False, 5 / 255, -26),
        (-2, 3, "int8", True, 3 / 127, 0),
        (-2, 3, "uint8", True, 3 / 127, 128),
        (-2, 3, "uint16", False, 5 / 65535, 26214),
        (0, 0, "uint8", False, 1, 0),
        (0, 0, "int8", True, 1, 0),
    ],
)
def test_step_and_zero(low, high, kind, symmetric, step, zero):
    grid = grid_of(seen(low, high), TYPES[kind], symmetric=symmetric)
    assert (grid.step, grid.zero) == (pytest.approx(step), zero)


def test_signal_to_noise_is_that_of_an_ordinary_token():
    grid = grid_of(seen(-100, 100), TYPES["uint8"], symmetric=False)
    tokens = np.random.default_rng(0).standard_normal(100_000)
    noise = tokens - np.rint(tokens / grid.step) * grid.step
    measured = 10 * np.log10(np.mean(tokens**2) / np.mean(noise**2))
    assert grid.ordinary_sqnr_db(1.0) == pytest.approx(measured, abs=0.2)
    assert grid.ordinary_sqnr_db(0.0) == 0
