"""The bias of a quantized product becomes an Add."""

import numpy as np
from small_graphs import apply, declined, graph, node, ops, random, run, worst

from onnxforge.passes.quantize_weights import QuantizeWeights
from onnxforge.passes.separate_bias import SeparateBias

LINEAR = """g (float[b,64] x) => (float[b,32] y) {
  product = MatMul(x, w)
  y = Add(product, bias)
}"""


def quantized(symmetric: bool = True):
    model = graph(LINEAR, w=random(64, 32), bias=random(32, seed=1))
    QuantizeWeights(min_elements=1, symmetric=symmetric, accuracy_level=0)(model)
    assert ops(model) == ["MatMulNBits"]
    return model


def test_the_bias_is_added_afterwards():
    model, before = quantized(), quantized()
    apply(SeparateBias(), model)
    assert ops(model) == ["MatMulNBits", "Add"]
    assert [value.name for value in model.graph.outputs] == ["y"]
    assert len(node(model, "MatMulNBits").inputs) == 3
    assert [value.name for value in node(model, "Add").inputs][1] == "bias"
    assert worst(before, model, {"x": random(5, 64, seed=2)}) < 1e-5


def test_zero_points_stay():
    model = quantized(symmetric=False)
    before = run(quantized(symmetric=False), {"x": random(5, 64, seed=2)})
    apply(SeparateBias(), model)
    assert len(node(model, "MatMulNBits").inputs) == 4
    np.testing.assert_allclose(run(model, {"x": random(5, 64, seed=2)})[0], before[0], atol=1e-5)


def test_a_product_without_bias_is_left_alone():
    model = graph("g (float[b,64] x) => (float[b,32] y) { y = MatMul(x, w) }", w=random(64, 32))
    QuantizeWeights(min_elements=1)(model)
    assert declined(SeparateBias(), model) == ""
