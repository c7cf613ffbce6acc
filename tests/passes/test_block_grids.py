"""Where the steps of a block lie: each method is best at what it sets out to minimise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import random

from onnxforge.passes.block_grids import GRIDS, encode
from onnxforge.passes.block_scheme import BlockScheme

SCHEMES = [
    (bits, block, symmetric) for bits in (4, 8) for block in (16, 64, 256) for symmetric in (True, False)
]


def error(blocks: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    codes, (step, zero) = encode(blocks, scheme)
    return (codes.astype(np.float64) - zero[..., None]) * step[..., None] - blocks


@pytest.mark.parametrize(("bits", "block", "symmetric"), SCHEMES)
def test_mse_has_the_least_squared_error_of_every_block(bits, block, symmetric):
    blocks = random(40, 3, block, scale=0.02)
    squared = {
        name: (error(blocks, BlockScheme(bits, block, symmetric, name)) ** 2).sum(axis=-1) for name in GRIDS
    }
    assert (squared["mse"] <= squared["rtn"] * (1 + 1e-5)).all()
    assert squared["mse"].sum() < 0.995 * squared["rtn"].sum()


@pytest.mark.parametrize(("bits", "block", "symmetric"), SCHEMES)
def test_hqq_lowers_the_p_norm_of_every_block(bits, block, symmetric):
    blocks = random(40, 3, block, scale=0.02)
    norm = {
        name: (np.abs(error(blocks, BlockScheme(bits, block, symmetric, name))) ** 0.7).sum(axis=-1)
        for name in ("rtn", "hqq")
    }
    assert (norm["hqq"] <= norm["rtn"] * (1 + 1e-4)).all()
    assert norm["hqq"].sum() < 0.995 * norm["rtn"].sum()


def test_an_outlier_is_clipped_where_that_pays():
    blocks = random(1, 64, scale=0.1)
    blocks[0, 5] = 0.7
    (wide, _), (clipped, _) = (encode(blocks, BlockScheme(4, 64, True, m))[1] for m in ("rtn", "mse"))
    assert abs(clipped[0]) < 0.9 * abs(wide[0])


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(sorted(GRIDS)),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    scale=st.sampled_from([1e-30, 1e-4, 1.0, 1e30]),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 1000),
)
def test_every_grid_can_be_stored(method, bits, symmetric, scale, offset, seed):
    scheme = BlockScheme(bits, 16, symmetric, method)
    blocks = ((random(3, 2, 16, seed=seed) + np.float32(offset)) * np.float32(scale)).astype(np.float32)
    blocks[0, 0] = 0
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        codes, (step, zero) = encode(blocks, scheme)
    assert codes.dtype == np.uint8
    assert codes.max() < scheme.levels
    assert np.isfinite(step).all()
    assert (step != 0).all()
    assert step.dtype == zero.dtype == np.float32
    np.testing.assert_array_equal(zero, np.rint(zero))
    assert zero.min() >= 0
    assert zero.max() < scheme.levels
    assert (codes[0, 0] == zero[0, 0]).all(), "a block of zeros is decoded as zeros"
    again = encode(blocks, scheme)
    np.testing.assert_array_equal(again[0], codes)


@pytest.mark.parametrize("method", sorted(GRIDS))
def test_what_lies_on_a_grid_stays_on_it(method):
    codes = np.random.default_rng(0).integers(-8, 8, (6, 2, 32)).astype(np.float32)
    codes[..., 0] = -8
    blocks = codes * np.float32(0.25)
    assert np.abs(error(blocks, BlockScheme(4, 32, True, method))).max() < 1e-6
