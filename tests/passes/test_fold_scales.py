"""Scales move between weights; the numbers stay, and the channels come out even."""

import numpy as np
import pytest
from small_graphs import graph, node, random, run

from onnxforge.passes import notes
from onnxforge.passes.activation_range import ActivationRange, annotate, range_of
from onnxforge.passes.base import PassRefused
from onnxforge.passes.fold_scales import FoldScales

NORM = """g (float[b,s,16] x) => (float[b,s,24] q, float[b,s,32] k) {
  n = RMSNormalization<axis=-1, epsilon=1e-5>(x, gamma)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
}"""
GATED = """g (float[b,s,16] x) => (float[b,s,16] y) {
  gate = MatMul(x, wg)
  act = Sigmoid(gate)
  linear = MatMul(x, wu)
  up = Add(linear, bu)
  h = Mul(act, up)
  y = MatMul(h, wd)
}"""


def calibrated(model, feeds, *names):
    """Annotate the named values with what they are for ``feeds``."""
    values = {value.name: value for item in model.graph for value in item.outputs}
    probed = model.clone()
    found = {value.name: value for item in probed.graph for value in item.outputs}
    probed.graph.outputs.extend(found[name] for name in names)
    got = run(probed, feeds)[-len(names) :]
    for name, value in zip(names, got, strict=True):
        rows = value.reshape(-1, value.shape[-1])
        typical = float(np.sqrt(np.median(np.square(rows).mean(axis=-1))))
        annotate(values[name], ActivationRange(rows.min(axis=0), rows.max(axis=0), typical))


def norm_model():
    gamma = random(16, seed=1)
    gamma[3] = 40.0
    return graph(NORM, gamma=gamma, wq=random(16, 24, seed=2), wk=random(16, 32, seed=3))


def gated_model():
    wu = random(16, 32, seed=4)
    wu[:, 5] *= 50
    weights = {"wg": random(16, 32, seed=5), "wu": wu, "bu": random(32, seed=6), "wd": random(32, 16, seed=7)}
    return graph(GATED, **weights)


@pytest.mark.parametrize(("make", "value"), [(norm_model, "n"), (gated_model, "h")])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_numbers_stay_and_the_channels_even_out(make, value, alpha):
    model, feeds = make(), {"x": random(2, 5, 16)}
    calibrated(model, feeds, value)
    before = run(model, feeds)
    spread = spread_of(model, value)
    with notes.listen() as said:
        assert FoldScales(alpha=alpha)(model).modified
    assert [note.where for note in said] == [value]
    for got, meant in zip(run(model, feeds), before, strict=True):
        np.testing.assert_allclose(got, meant, rtol=1e-5, atol=1e-5 * np.abs(meant).max())
    if alpha == 1.0:
        assert spread_of(model, value) == pytest.approx(1, abs=1e-3)
        assert spread > 5


def spread_of(model, name):
    (value,) = [v for item in model.graph for v in item.outputs if v.name == name]
    largest = range_of(value).largest
    return float(largest.max() / largest.min())


def test_a_range_says_what_calibration_would_find_again():
    model, feeds = norm_model(), {"x": random(2, 5, 16)}
    calibrated(model, feeds, "n")
    FoldScales()(model)
    folded = range_of(node(model, "RMSNormalization").outputs[0])
    calibrated(model, feeds, "n")
    np.testing.assert_allclose(
        folded.largest, range_of(node(model, "RMSNormalization").outputs[0]).largest, rtol=1e-5
    )


def test_channels_that_carry_nothing_are_left_alone():
    model, feeds = norm_model(), {"x": random(2, 5, 16)}
    gamma = model.graph.initializers["gamma"].const_value.numpy()
    gamma[7] = 0
    calibrated(model, feeds, "n")
    before = run(model, feeds)
    FoldScales()(model)
    for got, meant in zip(run(model, feeds), before, strict=True):
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, meant, rtol=1e-5, atol=1e-4)


def test_a_second_reader_is_a_near_miss():
    body = NORM.replace("q = MatMul", "r = Relu(n)\n  q = MatMul").replace(
        "float[b,s,32] k)", "float[b,s,32] k, float[b,s,16] r)"
    )
    model = graph(body, gamma=random(16), wq=random(16, 24), wk=random(16, 32))
    calibrated(model, {"x": random(1, 3, 16)}, "n")
    with notes.listen() as said:
        assert not FoldScales()(model).modified
    assert "Relu" in said[0].reason


def test_a_product_of_two_nonlinear_factors_takes_no_scale():
    model = graph(
        GATED.replace("up = Add(linear, bu)", "sum = Add(linear, bu)\n  up = Tanh(sum)"),
        wg=random(16, 32), wu=random(16, 32), bu=random(32), wd=random(32, 16),
    )  # fmt: skip
    calibrated(model, {"x": random(1, 3, 16)}, "h")
    assert not FoldScales()(model).modified


def test_without_calibration_nothing_happens():
    assert not FoldScales()(norm_model()).modified


def test_a_weight_that_others_read_keeps_its_value_for_them():
    body = NORM.replace("k = MatMul(n, wk)", "k = MatMul(x, wq)").replace(
        "float[b,s,32] k", "float[b,s,24] k"
    )
    model, feeds = graph(body, gamma=random(16), wq=random(16, 24)), {"x": random(2, 3, 16)}
    calibrated(model, feeds, "n")
    before = run(model, feeds)
    assert FoldScales()(model).modified
    for got, meant in zip(run(model, feeds), before, strict=True):
        np.testing.assert_allclose(got, meant, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_an_exponent_out_of_range_is_refused(alpha):
    with pytest.raises(PassRefused, match="alpha is"):
        FoldScales(alpha=alpha).requires(norm_model())
