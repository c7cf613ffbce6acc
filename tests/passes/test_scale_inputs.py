"""Channels come out even in front of a product, and the numbers stay."""

import numpy as np
import pytest
from small_graphs import apply, declined, graph, ops, random, run, untouchable
from test_fold_scales import calibrated

from onnxforge.passes.base import PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.scale_inputs import ScaleInputs

BODY = """g (float[b,s,16] x) => (float[b,s,24] q, float[b,s,32] k, float[b,s,16] r) {
  n = LayerNormalization<axis=-1>(x, gamma)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
  r = Add(n, x)
}"""
FEEDS = {"x": random(2, 9, 16)}


def uneven():
    """A norm whose third channel is far larger than the others, read by a residual too."""
    gamma = np.ones(16, np.float32)
    gamma[3] = 60
    model = graph(BODY, gamma=gamma, wq=random(16, 24, seed=1), wk=random(16, 32, seed=2))
    calibrated(model, FEEDS, "n")
    return model


def test_both_products_read_the_even_value_and_the_residual_the_old_one():
    model = uneven()
    before = run(model, FEEDS)
    apply(ScaleInputs(below_db=99), model)
    assert ops(model) == ["LayerNormalization", "Mul", "MatMul", "MatMul", "Add"]
    assert [node.inputs[0].name for node in model.graph][1:] == ["n", "n.even", "n.even", "n"]
    for got, meant in zip(run(model, FEEDS), before, strict=True):
        np.testing.assert_allclose(got, meant, rtol=1e-5, atol=1e-5 * np.abs(meant).max())


def test_rounding_loses_less_than_without():
    def error(*steps):
        model = uneven()
        before = run(model, FEEDS)[0]
        for step in steps:
            step(model)
            calibrated(model, FEEDS, "n.even" if "Mul" in ops(model) else "n")
        InsertQdq(min_elements=1, min_sqnr_db=-99)(model)
        return np.linalg.norm(run(model, FEEDS)[0] - before) / np.linalg.norm(before)

    assert error(ScaleInputs(alpha=0.5, below_db=99)) < error() / 2


def test_scales_have_a_geometric_mean_of_one():
    model = uneven()
    ScaleInputs(below_db=99)(model)
    factors = model.graph.initializers["n.factors"].const_value.numpy()
    assert np.log(factors).mean() == pytest.approx(0, abs=1e-5)
    assert factors.argmin() == 3


def test_a_channel_that_carries_nothing_stays_as_it_is():
    model = uneven()
    model.graph.initializers["gamma"].const_value.numpy()[5] = 0
    calibrated(model, FEEDS, "n")
    ScaleInputs(below_db=99)(model)
    assert model.graph.initializers["n.factors"].const_value.numpy()[5] == 1


def test_what_is_even_stays():
    model = uneven()
    model.graph.initializers["gamma"].const_value.numpy()[3] = 1
    calibrated(model, FEEDS, "n")
    assert "as it is; 20 are enough" in declined(ScaleInputs(below_db=20), model)


def test_without_calibration_no_weight_is_read():
    model = graph(BODY, gamma=np.ones(16, np.float32), wq=untouchable(16, 24), wk=untouchable(16, 32))
    assert not ScaleInputs(below_db=99)(model).modified


def test_an_exponent_beyond_one_is_refused():
    with pytest.raises(PassRefused, match="between 0 and 1"):
        ScaleInputs(alpha=1.5).requires(uneven())
