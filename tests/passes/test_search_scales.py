"""Scales that lower the error of blockwise rounding, and change nothing else."""

import numpy as np
import pytest
from small_graphs import apply, declined, graph, random, run

from onnxforge.passes.base import PassRefused
from onnxforge.passes.input_moments import InputMoments, leave_moments
from onnxforge.passes.quantize_weights import QuantizeWeights
from onnxforge.passes.search_scales import SearchScales
from onnxforge.passes.stored_blocks import STORED_BLOCKS_TURNED

NORM = """g (float[b,s,64] x) => (float[b,s,96] q, float[b,s,128] k) {
  n = RMSNormalization<axis=-1, epsilon=1e-5>(x, gamma)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
}"""


def model(width: float = 2.0):
    """A norm whose channels carry very different power, in front of two matrices."""
    gamma = np.exp(random(64, seed=1) * width)
    made = graph(NORM, gamma=gamma, wq=random(64, 96, seed=2), wk=random(64, 128, seed=3))
    probe = made.clone()
    probe.graph.outputs.append(probe.graph[0].outputs[0])
    rows = run(probe, {"x": random(4, 30, 64)})[-1].reshape(-1, 64)
    leave_moments(made.graph[0].outputs[0], InputMoments(rows.T @ rows, len(rows)))
    return made


def error(before, *steps) -> float:
    after = before.clone()
    for step in (*steps, QuantizeWeights(bits=4, accuracy_level=0, symmetric=True)):
        apply(step, after)
    x = {"x": random(2, 40, 64, seed=9)}
    pairs = zip(run(before, x), run(after, x), strict=True)
    return float(sum(np.square(a - b).sum() for a, b in pairs))


@pytest.mark.parametrize("method", ["rtn", "mse"])
def test_rounding_behind_it_errs_less(method):
    before = model()
    assert error(before, SearchScales(method=method)) < 0.6 * error(before)


def test_the_numbers_stay():
    before = model()
    after = before.clone()
    apply(SearchScales(), after)
    x = {"x": random(2, 5, 64, seed=5)}
    for got, meant in zip(run(after, x), run(before, x), strict=True):
        np.testing.assert_allclose(got, meant, rtol=1e-5, atol=1e-5 * np.abs(meant).max())


def test_even_channels_are_left_alone():
    made = model()
    node = made.graph[0]
    leave_moments(node.outputs[0], InputMoments(np.eye(64, dtype=np.float32), 100))
    assert "no scales lower the error" in declined(SearchScales(), made)


def test_channels_that_carry_nothing_do_no_harm():
    made = model()
    made.graph.initializers["gamma"].const_value.numpy()[5] = 0
    moments = np.diag(np.square(made.graph.initializers["gamma"].const_value.numpy()))
    leave_moments(made.graph[0].outputs[0], InputMoments(moments, 100))
    before = made.clone()
    SearchScales()(made)
    x = {"x": random(2, 5, 64, seed=5)}
    for got, meant in zip(run(made, x), run(before, x), strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, meant, rtol=1e-4, atol=1e-5 * np.abs(meant).max())


def test_stored_blocks_are_not_broken():
    made = model()

    class Blocks:
        form, order = (4, 32, "middle"), None

    made.graph.initializers["wq"].const_value.meta[STORED_BLOCKS_TURNED] = Blocks()
    assert "blocks, which scales would break" in declined(SearchScales(), made)


@pytest.mark.parametrize(("origin", "searched"), [("middle", False), ("minimum", True)])
def test_where_only_plain_blocks_are_kept_the_others_are_searched(origin, searched):
    made = model()

    class Blocks:
        form, order = (4, 32, origin), None

    made.graph.initializers["wq"].const_value.meta[STORED_BLOCKS_TURNED] = Blocks()
    assert SearchScales(plain_blocks=True)(made).modified is searched


def test_a_width_of_no_whole_blocks_is_left_alone():
    assert "no multiple of block_size 128" in declined(SearchScales(block_size=128), model())


def test_without_moments_it_says_what_to_do():
    made = graph(NORM, gamma=random(64), wq=random(64, 96), wk=random(64, 128))
    with pytest.raises(PassRefused, match=r"put `correlate-inputs` before"):
        SearchScales().requires(made)


@pytest.mark.parametrize(
    ("options", "word"),
    [({"bits": 3}, "4 or 8 bits"), ({"block_size": 48}, "blocks of"), ({"method": "gptq"}, "rtn")],
)
def test_schemes_that_are_none_are_refused(options, word):
    with pytest.raises(PassRefused, match=word):
        SearchScales(**options).requires(model())
