"""Weights in blocks of integers: the right numbers, stored once, computed only when written."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_exports import decoder_feeds
from small_graphs import apply, declined, graph, ops, random, run, untouchable, worst

from onnxforge.passes.base import PassRefused
from onnxforge.passes.block_gptq import compensated
from onnxforge.passes.block_quantization import dequantize, quantize
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.input_moments import InputMoments, leave_moments
from onnxforge.passes.quantize_weights import QuantizeWeights

SCHEMES = [(8, True, 32), (8, False, 32), (4, True, 32), (4, False, 32), (4, False, 16), (8, True, 64)]
TIED = """g (int64[b,s] ids, float[b,s,192] x) => (float[b,s,192] e, float[b,s,128] l) {
  e = Gather(table, ids)
  t = Transpose<perm=[1,0]>(table)
  l = MatMul(x, t)
}"""


def relative(got: np.ndarray, meant: np.ndarray) -> float:
    return float(np.linalg.norm(got - meant) / np.linalg.norm(meant))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 10_000),
    offset=st.floats(-3, 3),
)
def test_no_element_moves_by_more_than_its_step(bits, symmetric, rows, blocks, seed, offset):
    scheme = BlockScheme(bits, 16, symmetric)
    weight = random(rows, blocks * 16, seed=seed) + np.float32(offset)
    weight[0, :16] = 0
    quantized = quantize(weight, scheme)
    back = dequantize(quantized, scheme)
    error = np.abs(back - weight).reshape(rows, blocks, 16).max(axis=-1)
    assert (error <= np.abs(quantized.scales) * 1.001 + 1e-6).all()
    assert (back[0, :16] == 0).all()


def test_a_weight_on_the_grid_comes_back_exactly():
    codes = np.random.default_rng(0).integers(-8, 8, (6, 64)).astype(np.float32)
    codes[:, ::32] = -8
    weight = codes * np.float32(0.25)
    scheme = BlockScheme(4, 32, symmetric=True)
    np.testing.assert_array_equal(dequantize(quantize(weight, scheme), scheme), weight)


def test_long_weights_are_quantized_in_pieces(monkeypatch):
    from onnxforge.passes import block_quantization

    weight, scheme = random(50, 64), BlockScheme(8, 32, symmetric=False)
    whole = quantize(weight, scheme)
    monkeypatch.setattr(block_quantization, "_CHUNK", 7 * 64)
    pieces = quantize(weight, scheme)
    for part in ("packed", "scales", "zeros"):
        np.testing.assert_array_equal(getattr(whole, part), getattr(pieces, part))


@pytest.mark.parametrize(("bits", "symmetric", "block"), SCHEMES)
def test_the_shape_of_a_real_projection(bits, symmetric, block):
    weight, bias, x = random(576, 1536, scale=0.05), random(1536, seed=1), random(2, 7, 576, seed=2)
    model = graph(
        "g (float[b,s,576] x) => (float[b,s,1536] y) { p = MatMul(x, w)\n y = Add(p, bias) }",
        w=weight,
        bias=bias,
    )
    apply(QuantizeWeights(bits=bits, symmetric=symmetric, block_size=block), model)
    assert ops(model) == ["MatMulNBits"]
    (got,) = run(model, {"x": x})
    assert relative(got, x @ weight + bias) < (0.009 if bits == 8 else 0.09)
    scheme = BlockScheme(bits, block, symmetric)
    exact = x @ dequantize(quantize(weight.T, scheme), scheme).T + bias
    assert relative(got, exact) < 0.005, "what is left is the rounding of activations"


def test_rows_do_not_depend_on_their_neighbours():
    model = graph("g (float[n,64] x) => (float[n,96] y) { y = MatMul(x, w) }", w=random(64, 96))
    apply(QuantizeWeights(), model)
    x = random(9, 64, seed=1)
    x[4] *= 1000
    (together,) = run(model, {"x": x})
    alone = np.concatenate([run(model, {"x": row[None]})[0] for row in x])
    np.testing.assert_allclose(together, alone, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize(("bits", "symmetric", "block"), SCHEMES)
def test_a_tied_embedding_is_stored_once(bits, symmetric, block):
    table, x = random(128, 192, scale=0.1), random(2, 3, 192, seed=1)
    model = graph(TIED, table=table)
    apply(QuantizeWeights(bits=bits, symmetric=symmetric, block_size=block), model)
    packed = [item for item in model.graph.initializers.values() if item.const_value.size > 4000]
    assert [item.name for item in packed] == [f"table.q{bits}"]
    assert packed[0].const_value.nbytes == 128 * 192 * bits // 8
    ids = np.array([[0, 127, 5], [5, 64, 1]])
    looked_up, logits = run(model, {"ids": ids, "x": x})
    scheme = BlockScheme(bits, block, symmetric)
    stored = dequantize(quantize(table, scheme), scheme)
    np.testing.assert_allclose(looked_up, stored[ids], atol=1e-6)
    assert relative(logits, x @ stored.T) < 0.006


def test_nothing_is_read_before_the_artifact_is_written():
    model = graph(TIED, table=untouchable(128, 192))
    apply(QuantizeWeights(), model)
    assert ops(model).count("MatMulNBits") == 1
    with pytest.raises(AssertionError, match="read a weight"):
        model.graph.initializers["table.q8"].const_value.numpy()


def test_an_untied_embedding_is_quantized_when_it_is_large():
    body = "g (int64[b,s] ids) => (float[b,s,64] e) { e = Gather(table, ids) }"
    table = random(128, 64)
    declined(QuantizeWeights(), graph(body, table=table))
    before = graph(body, table=table)
    after = before.clone()
    apply(QuantizeWeights(min_embedding=4096), after)
    assert worst(before, after, {"ids": np.array([[1, 2, 127]])}) < 0.02


@pytest.mark.parametrize(
    ("shape", "reason"), [((40, 128), "K is 40"), ((32, 16), "512 elements are fewer than 4096")]
)
def test_what_stays_float_says_why(shape, reason):
    model = graph(
        f"g (float[n,{shape[0]}] x) => (float[n,{shape[1]}] y) {{ y = MatMul(x, w) }}", w=random(*shape)
    )
    assert reason in declined(QuantizeWeights(), model)


def test_names_can_be_skipped():
    model = graph("g (float[n,64] x) => (float[n,96] y) { y = MatMul(x, lm_head) }", lm_head=random(64, 96))
    assert "skip='lm_head'" in declined(QuantizeWeights(skip="lm_head"), model)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"bits": 3}, "bits is 3"),
        ({"block_size": 48}, "block_size is 48"),
        ({"skip": "("}, "regular"),
        ({"method": "best"}, "rtn, mse, hqq, gptq"),
    ],
)
def test_options_without_a_kernel_are_refused(options, word):
    model = graph("g (float[n,64] x) => (float[n,96] y) { y = MatMul(x, w) }", w=random(64, 96))
    with pytest.raises(PassRefused, match=word):
        QuantizeWeights(**options).requires(model)


def test_two_readers_of_one_weight_share_the_packed_one():
    before = graph(
        "g (float[n,64] x) => (float[n,64] y) { a = MatMul(x, w)\n y = MatMul(a, w) }",
        w=random(64, 64, scale=0.1),
    )
    after = before.clone()
    apply(QuantizeWeights(), after)
    assert sorted(after.graph.initializers) == ["w.q8", "w.scales"]
    assert worst(before, after, {"x": random(3, 64, seed=1)}) < 0.02


def measured(model, name, x):
    """Leave the moments of ``x`` on the value called ``name``."""
    values = [value for item in model.graph for value in (*item.inputs, *item.outputs) if value is not None]
    rows = x.reshape(-1, x.shape[-1])
    leave_moments(next(v for v in values if v.name == name), InputMoments(rows.T @ rows, len(rows)))


@pytest.mark.parametrize(("bits", "symmetric", "block"), SCHEMES)
def test_gptq_is_closest_on_the_inputs_it_was_given(bits, symmetric, block):
    x = random(200, 192, seed=1) * np.exp(random(192, seed=2)) + random(200, 1, seed=4)
    before = graph("g (float[n,192] x) => (float[n,96] y) { y = MatMul(x, w) }", w=random(192, 96, scale=0.1))
    errors = {}
    for method in ("rtn", "mse", "hqq", "gptq"):
        after = before.clone()
        measured(after, "x", x)
        options = {"bits": bits, "block_size": block, "symmetric": symmetric, "accuracy_level": 0}
        apply(QuantizeWeights(method=method, **options), after)
        (meant,), (got,) = (run(model, {"x": x}) for model in (before, after))
        errors[method] = relative(got, meant)
    assert errors["gptq"] < 0.85 * min(errors["rtn"], errors["mse"], errors["hqq"])


def test_gptq_without_moments_says_what_to_do():
    body = "g (float[n,64] x) => (float[n,96] y) { y = MatMul(x, w) }"
    model = graph(body, w=random(64, 96))
    with pytest.raises(PassRefused, match=r"1 products.*put `correlate-inputs` before"):
        QuantizeWeights(method="gptq").requires(model)
    QuantizeWeights(method="gptq", skip="w").requires(model)
    QuantizeWeights(method="gptq", block_size=128).requires(model)
    measured(model, "x", random(9, 64))
    QuantizeWeights(method="gptq").requires(model)


def test_a_matrix_of_two_inputs_is_rounded_for_both():
    body = """g (float[n,64] x, float[m,64] z) => (float[n,64] a, float[m,64] b) {
      a = MatMul(x, w)
      b = MatMul(z, w)
    }"""
    model = graph(body, w=random(64, 64, scale=0.1))
    x, z = random(50, 64, seed=1), random(50, 64, seed=2) * 3
    measured(model, "x", x)
    measured(model, "z", z)
    weight = model.graph.initializers["w"].const_value.numpy()
    apply(QuantizeWeights(bits=4, method="gptq"), model)
    expected = compensated(weight.T, x.T @ x + z.T @ z, BlockScheme(4, 32, True, "gptq"))
    np.testing.assert_array_equal(model.graph.initializers["w.q4"].const_value.numpy(), expected.packed)


def test_a_tied_head_and_an_embedding_alone_under_gptq():
    table, x = random(128, 192, scale=0.1), random(40, 192, seed=1)
    model = graph(TIED, table=table)
    measured(model, "x", x)
    apply(QuantizeWeights(method="gptq"), model)
    looked_up, logits = run(model, {"ids": np.array([[0, 127, 5]]), "x": x[None]})
    np.testing.assert_allclose(looked_up[0], table[[0, 127, 5]], atol=0.01)
    assert relative(logits[0], x @ table.T) < 0.006
    alone = graph("g (int64[b,s] ids) => (float[b,s,64] e) { e = Gather(table, ids) }", table=random(128, 64))
    before = alone.clone()
    apply(QuantizeWeights(method="gptq", min_embedding=4096), alone)
    assert worst(before, alone, {"ids": np.array([[1, 2, 127]])}) < 0.02


@pytest.mark.parametrize("method", ["mse", "hqq"])
def test_a_method_is_closer_to_the_source_than_rounding(method):
    before = graph("g (float[n,256] x) => (float[n,96] y) { y = MatMul(x, w) }", w=random(256, 96, scale=0.1))
    errors = {}
    for name in ("rtn", method):
        after = before.clone()
        apply(QuantizeWeights(bits=4, block_size=64, accuracy_level=0, method=name), after)
        (meant,), (got,) = (run(model, {"x": random(64, 256, seed=1)}) for model in (before, after))
        errors[name] = relative(got, meant)
    assert errors[method] < 0.97 * errors["rtn"]


def test_a_tiny_decoder_keeps_its_distribution(tiny_export):
    before = tiny_export("llama", hidden_size=64)
    Canonicalize()(before)
    after = before.clone()
    apply(QuantizeWeights(), after)
    assert ops(after).count("MatMulNBits") > 20
    feeds = decoder_feeds(before, 2, 6, 0)
    meant, got = run(before, feeds)[0], run(after, feeds)[0]
    p, q = (np.exp(z - z.max(-1, keepdims=True)) for z in (meant, got))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    assert float((p * np.log(p / q)).sum(-1).mean()) < 1e-3


@pytest.mark.parametrize(
    "order", [("q4", "scales", "zeros"), ("zeros", "scales", "q4"), ("scales", "q4", "q4")]
)
def test_parts_are_the_same_in_whatever_order_a_writer_asks(order):
    weight, scheme = random(64, 96, seed=3), BlockScheme(4, 32, symmetric=False)
    model = graph("g (float[n,64] x) => (float[n,96] y) { y = MatMul(x, w) }", w=weight)
    apply(QuantizeWeights(bits=4, symmetric=False), model)
    expected = quantize(weight.T, scheme)
    names = {"q4": expected.packed, "scales": expected.scales, "zeros": expected.zeros}
    for part in order:
        got = model.graph.initializers[f"w.{part}"].const_value.numpy()
        np.testing.assert_array_equal(got, names[part])
