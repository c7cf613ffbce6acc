"""Errors make up for one another: the product comes closer to the source's than block by block."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxforge.passes import block_gptq
from onnxforge.passes.block_gptq import compensated
from onnxforge.passes.block_quantization import dequantize, quantize
from onnxforge.passes.block_scheme import BlockScheme

FORMS = [
    (bits, block, symmetric) for bits in (4, 8) for block in (32, 64, 128) for symmetric in (True, False)
]


def inputs(tokens: int, width: int, seed: int = 0) -> np.ndarray:
    """Correlated channels, a few of them large, as activations are."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(tokens, width)) @ rng.normal(size=(width, width)) / np.sqrt(width)
    return (mixed * np.exp(rng.normal(size=width))).astype(np.float32)


def weights(count: int, width: int, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, width)) * 0.05).astype(np.float32)


def error(blocks, scheme, rows, x) -> float:
    meant = x @ rows.T
    return float(np.linalg.norm(x @ dequantize(blocks, scheme).T - meant) / np.linalg.norm(meant))


@pytest.mark.parametrize(("bits", "block", "symmetric"), FORMS)
def test_the_product_is_closer_than_any_other_methods(bits, block, symmetric):
    x, rows = inputs(1024, 256), weights(48, 256)
    errors = {
        name: error(quantize(rows, scheme), scheme, rows, x)
        for name in ("rtn", "mse", "hqq")
        for scheme in (BlockScheme(bits, block, symmetric, name),)
    }
    scheme = BlockScheme(bits, block, symmetric, "gptq")
    made = compensated(rows, x.T @ x, scheme)
    assert made.packed.shape == (48, 256 // block, scheme.blob())
    assert (made.zeros is None) == symmetric
    assert error(made, scheme, rows, x) < 0.8 * min(errors.values())


def plain_gptq(rows: np.ndarray, moments: np.ndarray, order: np.ndarray, steps: np.ndarray, scheme):
    """The paper's algorithm with its inverse, column by column in float64, on given steps: [N, K]."""
    columns = rows[:, order].astype(np.float64)
    damped = moments[np.ix_(order, order)].astype(np.float64)
    damped += np.eye(len(order)) * block_gptq.DAMPING * np.diagonal(moments).mean()
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T
    decoded = np.empty_like(columns)
    for k in range(len(order)):
        step = steps[:, order[k] // scheme.block_size]
        codes = np.clip(np.rint(columns[:, k] / step), -scheme.middle, scheme.middle - 1)
        decoded[:, k] = codes * step
        columns[:, k:] -= np.outer((columns[:, k] - decoded[:, k]) / factor[k, k], factor[k, k:])
    back = np.empty_like(decoded)
    back[:, order] = decoded
    return back


def test_the_codes_are_those_of_the_papers_algorithm():
    x, rows, scheme = inputs(600, 128), weights(24, 128), BlockScheme(4, 32, True, "gptq")
    moments = x.T @ x
    made = compensated(rows, moments, scheme)
    order = block_gptq._order(np.diagonal(moments), 32)
    expected = plain_gptq(rows, moments, order, made.scales.astype(np.float64), scheme)
    same = np.isclose(dequantize(made, scheme), expected, rtol=1e-5, atol=1e-7)
    assert same.mean() > 0.999, "a tie may fall the other way, and moves what follows it in its row"


def test_the_factor_gives_back_the_damped_moments():
    x = inputs(300, 64)
    moments = x.T @ x
    feedback, costs = block_gptq._factored(moments)
    upper = feedback.T.astype(np.float64)
    np.testing.assert_array_equal(upper, np.triu(upper))
    np.testing.assert_allclose(np.diagonal(upper), 1)
    damped = moments + np.eye(64) * block_gptq.DAMPING * np.diagonal(moments).mean()
    np.testing.assert_allclose((upper * costs) @ upper.T, damped, rtol=1e-3, atol=1e-3 * damped.max())
    assert costs.max() > 10 * costs.min(), "what a column costs is what its grid is searched by"


def test_columns_go_by_power_and_never_leave_their_block():
    powers = np.random.default_rng(3).random(96)
    order = block_gptq._order(powers, 32).reshape(3, 32)
    assert sorted(order.ravel()) == list(range(96))
    assert (order // 32 == order[:, :1] // 32).all()
    assert (np.diff(powers[order], axis=1) <= 0).all()
    assert (np.diff(powers[order].sum(axis=1)) <= 0).all()


def test_channels_that_carry_nothing_are_rounded_to_the_nearest():
    x, rows, scheme = inputs(300, 128), weights(8, 128), BlockScheme(8, 64, True, "gptq")
    x[:, [3, 64, 127]] = 0
    made = compensated(rows, x.T @ x, scheme)
    wrong = np.abs(dequantize(made, scheme) - rows)[:, [3, 64, 127]]
    assert (wrong <= np.abs(made.scales).max(axis=1)[:, None] * 0.51).all()
    assert error(made, scheme, rows, x) < 0.01


def test_no_data_at_all_still_rounds():
    rows, scheme = weights(8, 64), BlockScheme(4, 32, False, "gptq")
    made = compensated(rows, np.zeros((64, 64), np.float32), scheme)
    assert np.abs(dequantize(made, scheme) - rows).max() < 0.02


def test_fewer_tokens_than_channels_and_massive_ones():
    x, rows, scheme = inputs(20, 128), weights(16, 128), BlockScheme(4, 32, True, "gptq")
    x[0] *= 3000
    assert error(compensated(rows, x.T @ x, scheme), scheme, rows, x) < 0.02


def test_a_long_matrix_is_rounded_in_pieces(monkeypatch):
    x, rows, scheme = inputs(300, 64), weights(50, 64), BlockScheme(4, 32, False, "gptq")
    whole = compensated(rows, x.T @ x, scheme)
    monkeypatch.setattr(block_gptq, "_ROWS", 7)
    pieces = compensated(rows, x.T @ x, scheme)
    same = np.isclose(dequantize(whole, scheme), dequantize(pieces, scheme), rtol=1e-5)
    assert same.mean() > 0.99, "products of other shapes round differently, and a tie may fall the other way"


def test_moments_that_are_no_sum_of_squares_are_an_error():
    with pytest.raises(np.linalg.LinAlgError):
        compensated(weights(4, 32), -np.eye(32, dtype=np.float32), BlockScheme(4, 32, True, "gptq"))


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    scale=st.sampled_from([1e-20, 1e-4, 1.0, 1e10]),
    power=st.sampled_from([1e-12, 1.0, 1e12]),
    seed=st.integers(0, 1000),
)
def test_whatever_the_size_of_weights_and_inputs(bits, symmetric, scale, power, seed):
    scheme = BlockScheme(bits, 16, symmetric, "gptq")
    x, rows = inputs(40, 32, seed), weights(3, 32, seed) * np.float32(scale)
    rows[0, :16] = 0
    made = compensated(rows, x.T @ x * np.float32(power), scheme)
    assert np.isfinite(made.scales).all()
    assert (made.scales != 0).all()
    assert error(made, scheme, rows, x) < (0.2 if bits == 4 else 0.02)
