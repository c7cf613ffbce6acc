"""A grid for each row of activations: the numbers, rows that stay apart, and that the CPU fuses it."""

import numpy as np
import pytest
from small_graphs import graph, ops, random, run
from test_insert_qdq_forms import distance, loaded

from onnxforge.passes.base import PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.kept_float import keep_float
from onnxforge.passes.qdq_scheme import TYPES, Granularity, WeightScheme
from onnxforge.passes.weight_grid import quantize

BODY = """g (float[b,s,64] x) => (float[b,s,96] q, float[b,s,128] k) {
  n = Sin(x)
  q = MatMul(n, wq)
  k = MatMul(n, wk)
}"""
PER_TOKEN = InsertQdq(per_token=True)


def model_and_feeds():
    model = graph(BODY, wq=random(64, 96, seed=1), wk=random(64, 128, seed=2))
    return model, {"x": random(2, 9, 64)}


def test_the_numbers_are_those_of_the_formula_and_no_calibration_is_needed():
    model, feeds = model_and_feeds()
    weight = model.graph.initializers["wq"].const_value.numpy()
    assert PER_TOKEN(model).modified
    data = np.sin(feeds["x"])
    size = np.abs(data).max(-1, keepdims=True)
    codes = np.rint(data / size * np.float32(127)).astype(np.float64)
    columns = quantize(weight, WeightScheme(TYPES["int8"], Granularity.CHANNEL, 32, symmetric=True))
    meant = codes @ columns.codes.astype(np.float64) / 127 * columns.steps * size
    got = run(model, feeds)[0]
    # a value halfway between two codes may go to either
    assert (
        np.abs(got - meant).max() <= 1.01 * (columns.steps * np.abs(columns.codes).max(0) * size / 127).max()
    )
    assert distance(got, meant) < 2e-3
    assert ops(model).count("ReduceMax") == 1  # both products share it
    assert not PER_TOKEN(model).modified


def test_rows_are_bit_for_bit_what_they_are_alone():
    model, feeds = model_and_feeds()
    PER_TOKEN(model)
    whole = run(model, feeds)
    for position in range(9):
        alone = run(model, {"x": feeds["x"][:, position : position + 1]})
        for one, every in zip(alone, whole, strict=True):
            assert np.array_equal(one[:, 0], every[:, position])


def test_a_massive_token_spoils_only_itself_and_nothing_becomes_nan():
    model, feeds = model_and_feeds()
    body = BODY.replace("n = Sin(x)", "n = Neg(x)")
    model = graph(body, wq=random(64, 96, seed=1), wk=random(64, 128, seed=2))
    feeds["x"][0, 0, 5] = 3000.0
    feeds["x"][1, 3] = 0.0
    exact = run(model, feeds)[0]
    PER_TOKEN(model)
    got = run(model, feeds)[0]
    assert np.isfinite(got).all()
    assert not got[1, 3].any()
    for row, token in ((0, 1), (0, 8), (1, 0)):
        assert distance(got[row, token], exact[row, token]) < 0.02


def test_the_cpu_makes_integer_products_of_it():
    model, feeds = model_and_feeds()
    exact = run(model, feeds)
    PER_TOKEN(model)
    outputs, ran = loaded(model, feeds)
    assert ran["MatMulIntegerToFloat"] == 2
    assert ran["DequantizeLinear"] == ran["MatMul"] == 0
    for got, meant in zip(outputs, exact, strict=True):
        assert distance(got, meant) < 0.02


@pytest.mark.parametrize("turned", [0, 1])
def test_a_gemm_over_matrices_keeps_its_bias(turned):
    size = (64, 96)[::-1] if turned else (64, 96)
    body = f"""g (float[n,64] x) => (float[n,96] y) {{
      m = Sin(x)
      y = Gemm<transB={turned}>(m, w, b)
    }}"""
    model, feeds = graph(body, w=random(*size, seed=1), b=random(96, seed=4)), {"x": random(7, 64)}
    exact = run(model, feeds)[0]
    assert PER_TOKEN(model).modified
    outputs, ran = loaded(model, feeds)
    assert distance(outputs[0], exact) < 0.02
    assert ran["MatMulIntegerToFloat"] == 1
    assert ran["DequantizeLinear"] == 0


def test_what_was_kept_from_one_grid_for_all_is_taken_and_what_was_kept_float_is_not():
    model, _ = model_and_feeds()
    first, second = (node for node in model.graph if node.op_type == "MatMul")
    keep_float(first, "measured", static_only=True)
    keep_float(second, "the user said so")
    assert not InsertQdq(dynamic=True, only="wq")(model).modified
    assert PER_TOKEN(model).modified
    assert ops(model).count("QuantizeLinear") == 1
    assert second.inputs[0].name == "n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activations": "int8"}, "centred uint8"),
        ({"activations": "none"}, "centred uint8"),
        ({"dynamic": True}, "dynamic=false"),
        ({"symmetric_activations": True}, "centred uint8"),
        ({"granularity": "block"}, "takes no scale"),
        ({"weights": "int4"}, "int4 weights"),
        ({"provider": "cuda"}, "CUDA has no int8 product"),
        ({"provider": "tensorrt"}, "int8 activations"),
    ],
)
def test_forms_without_a_kernel_are_refused(options, said):
    model, _ = model_and_feeds()
    with pytest.raises(PassRefused, match=said):
        InsertQdq(per_token=True, **options).requires(model)


def test_an_opset_whose_reduction_takes_no_axes_is_refused():
    model = graph(BODY, 17, wq=random(64, 96, seed=1), wk=random(64, 128, seed=2))
    with pytest.raises(PassRefused, match="needs opset 18"):
        PER_TOKEN.requires(model)
