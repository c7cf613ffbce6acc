"""Static W8A8: the numbers, the rows that do not depend on one another, and what is left alone."""

import numpy as np
import pytest
from small_graphs import graph, ops, random, run
from test_fold_scales import calibrated

from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.qdq_scheme import TYPES, Granularity, WeightScheme
from onnxforge.passes.weight_grid import quantize

BODY = """g (float[b,s,64] x) => (float[b,s,96] q, float[b,s,128] k) {
  n = Tanh(x)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
}"""


def model_and_feeds():
    feeds = {"x": random(2, 9, 64)}
    model = graph(BODY, wq=random(64, 96, seed=1), wk=random(64, 128, seed=2))
    calibrated(model, feeds, "n")
    return model, feeds


def test_both_products_share_one_grid():
    model, feeds = model_and_feeds()
    before = run(model, feeds)
    with notes.listen() as said:
        assert InsertQdq()(model).modified
    assert len(said) == 2
    assert ops(model).count("QuantizeLinear") == 1
    assert ops(model).count("DequantizeLinear") == 3
    for got, meant in zip(run(model, feeds), before, strict=True):
        assert np.linalg.norm(got - meant) / np.linalg.norm(meant) < 0.02
    assert not InsertQdq()(model).modified


def test_the_numbers_are_those_of_the_formula():
    model, feeds = model_and_feeds()
    weight = model.graph.initializers["wq"].const_value.numpy()
    InsertQdq()(model)
    data = np.tanh(feeds["x"])
    low, high = min(data.min(), 0), max(data.max(), 0)
    step = np.float32((high - low) / 255)
    zero = np.rint(-low / step)
    codes = np.clip(np.rint(data / step) + zero, 0, 255)
    columns = quantize(weight, WeightScheme(TYPES["int8"], Granularity.CHANNEL, 32, symmetric=True))
    meant = ((codes - zero) @ columns.codes.astype(np.float64)) * step * columns.steps
    np.testing.assert_allclose(run(model, feeds)[0], meant, rtol=1e-4, atol=1e-4 * np.abs(meant).max())


def test_a_row_does_not_depend_on_the_others():
    model, feeds = model_and_feeds()
    InsertQdq()(model)
    whole = run(model, feeds)[0]
    for position in range(9):
        alone = run(model, {"x": feeds["x"][:, position : position + 1]})[0]
        np.testing.assert_array_equal(alone[:, 0], whole[:, position])


def test_massive_tokens_leave_the_product_float():
    feeds = {"x": random(2, 9, 64)}
    feeds["x"][0, 0] *= 3000
    model = graph(BODY.replace("Tanh", "Identity"), wq=random(64, 96), wk=random(64, 128))
    calibrated(model, feeds, "n")
    with notes.listen() as said:
        assert not InsertQdq()(model).modified
    assert "an ordinary token keeps" in said[0].reason


def test_small_skipped_and_uncalibrated_products_stay():
    model, _ = model_and_feeds()
    with notes.listen() as said:
        assert InsertQdq(skip="wq", min_elements=64 * 97)(model).modified
    assert [note.reason for note in said if note.reason] == ["its name matches skip='wq'"]
    assert "float" in str(model.graph.initializers["wq"].dtype).lower()


@pytest.mark.parametrize(("options", "says"), [({"skip": "("}, "regular"), ({}, "calibrate")])
def test_refusals(options, says):
    model = graph(BODY, wq=random(64, 96), wk=random(64, 128))
    with pytest.raises(PassRefused, match=says):
        InsertQdq(**options).requires(model)
