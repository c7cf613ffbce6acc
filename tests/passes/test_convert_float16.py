"""Float32 to float16: the text of the graph, its numbers, what stays float32, and what is refused."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_graphs import apply, declined, graph, node, ops, random, run, untouchable

from onnxforge.passes.base import PassRefused
from onnxforge.passes.cleanup import Cleanup
from onnxforge.passes.convert_float16 import ConvertFloat16
from onnxforge.passes.lazy import lazy_tensor

PLAIN = """g (float[b,4] x, int64[b] ids) => (float[b,4] y, int64[b] n) {
  h = MatMul(x, w)
  y = Relu(h)
  n = Identity(ids)
}"""
NORM = """g (float[b,4] x) => (float[b,4] y) {
  two = Constant<value = float {2.0}>()
  axes = Constant<value = int64[1] {-1}>()
  squared = Pow(x, two)
  mean = ReduceMean(squared, axes)
  shifted = Add(mean, epsilon)
  root = Sqrt(shifted)
  y = Div(x, root)
}"""
ANGLES = """g (int64[s] p, float[s,2] x) => (float[s,2] y) {
  number = Cast<to=1>(p)
  axis = Constant<value = int64[1] {-1}>()
  column = Unsqueeze(number, axis)
  angle = Mul(column, frequency)
  turned = Cos(angle)
  y = Mul(x, turned)
}"""


def text(model: ir.Model) -> str:
    """The body and the signature, without the header."""
    return ir.to_onnx_text(model).split(">", 1)[1].strip()


def halves(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return random(*shape, seed=seed, scale=scale).astype(np.float16)


def both(model: ir.Model, **feeds: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Source and converted graph on the same numbers, which float16 can say."""
    before = run(model, {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in feeds.items()})
    apply(ConvertFloat16(), model)
    return before, run(model, feeds)


def test_the_graph_in_float16():
    model = graph(PLAIN, w=np.array([[1, 2, 3, 4]], np.float32))
    apply(ConvertFloat16(), model)
    assert text(model).splitlines() == [
        "g (float16[b,4] x, int64[b] ids) => (float16[b,4] y, int64[b] n) ",
        "   <float16[1,4] w =  {15360,16384,16896,17408}, float16[1,4] w, float16[] h>",
        "{",
        "   [MatMul_0] h = MatMul (x, w)",
        "   [Relu_1] y = Relu (h)",
        "   [Identity_2] n = Identity (ids)",
        "}",
    ]


def test_its_numbers_are_those_of_the_source_to_float16s_precision():
    before, after = both(graph(PLAIN, w=random(4, 4)), x=halves(3, 4), ids=np.arange(3))
    assert after[0].dtype == np.float16
    np.testing.assert_allclose(after[0], before[0], rtol=2e-3, atol=2e-3)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=8))
def test_a_weight_moves_by_half_a_step_at_most(values):
    weight = np.array(values, dtype=np.float32)
    body = f"g (float[{len(values)}] x) => (float[{len(values)}] y) {{ y = Add(x, w) }}"
    model = graph(body, w=weight)
    ConvertFloat16()(model)
    stored = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(stored, weight.astype(np.float16))


def test_a_norm_that_was_not_fused_stays_float32_inside():
    model = graph(NORM, epsilon=np.array(1e-12, np.float32))
    before, after = both(model, x=np.full((1, 4), 300, np.float16))
    np.testing.assert_allclose(after[0], before[0], rtol=1e-3)
    assert ops(model).count("Cast") == 2
    assert node(model, "Add").outputs[0].dtype is ir.DataType.FLOAT, "the epsilon would be 0 in float16"
    assert node(model, "Div").outputs[0].dtype is ir.DataType.FLOAT16


def test_positions_keep_all_their_digits_on_the_way_to_an_angle():
    model = graph(ANGLES, frequency=np.array([1.0, 0.37], np.float32))
    position = np.array([4097, 8191])
    before, after = both(model, p=position, x=np.ones((2, 2), np.float16))
    np.testing.assert_allclose(after[0], before[0], atol=1e-3)
    assert [item.outputs[0].dtype for item in model.graph if item.op_type == "Cos"] == [ir.DataType.FLOAT]
    assert model.graph.initializers["frequency"].dtype is ir.DataType.FLOAT


def test_a_weight_for_both_worlds_is_there_twice():
    body = """g (float[2] x) => (float[2] y, float[2] z) {
      y = Add(x, w)
      z = Pow(w, x)
    }"""
    model = graph(body, w=np.array([2.0, 3.0], np.float32))
    before, after = both(model, x=np.array([1.0, 2.0], np.float16))
    for ours, theirs in zip(after, before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds == {"w": ir.DataType.FLOAT, "w.float16": ir.DataType.FLOAT16}
    assert [value.name for value in model.graph.outputs] == ["y", "z"]
    assert {value.dtype for value in model.graph.outputs} == {ir.DataType.FLOAT16}


def test_what_skip_finds_stays_float32():
    model = graph(PLAIN, w=random(4, 4))
    apply(ConvertFloat16(skip="^w$"), model)
    assert ops(model) == ["Cast", "MatMul", "Cast", "Relu", "Identity"]
    assert model.graph.initializers["w"].dtype is ir.DataType.FLOAT


def test_minus_infinity_of_a_mask_is_float16s_own():
    body = "g (float[2] x) => (float[2] y) { y = Add(x, w) }"
    model = graph(body, w=np.array([np.finfo(np.float32).min, -np.inf], np.float32))
    apply(ConvertFloat16(), model)
    stored = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_array_equal(stored, np.array([-65504, -np.inf], np.float16))


def test_no_weight_is_read_before_it_is_written():
    model = graph(PLAIN.replace("float[b,4]", "float[b,96]"), w=untouchable(96, 96))
    apply(ConvertFloat16(), model)
    stored = model.graph.initializers["w"].const_value
    assert (stored.dtype, tuple(stored.shape)) == (ir.DataType.FLOAT16, (96, 96))


def test_weights_that_float16_cannot_hold_are_named_all_at_once():
    def lazy(largest: float) -> ir.LazyTensor:
        def compute() -> np.ndarray:
            return np.array([[largest, 0], [0, 1]], np.float32)

        return lazy_tensor(compute, dtype=ir.DataType.FLOAT, shape=(2, 2))

    body = """g (float[b,2] x) => (float[b,2] y) {
      h = MatMul(x, fine)
      i = MatMul(h, wide)
      y = MatMul(i, wider)
    }"""
    model = graph(body, fine=lazy(1.0), wide=lazy(7e4), wider=lazy(-1e5))
    ConvertFloat16()(model)
    assert model.graph.initializers["fine"].const_value.numpy().dtype == np.float16
    with pytest.raises(PassRefused, match=r"wide \(up to 70000\), wider \(up to 100000\)\. Keep them"):
        model.graph.initializers["wider"].const_value.numpy()


def test_a_graph_without_float32_is_left_alone():
    model = graph("g (int64[b] x) => (int64[b] y) { y = Identity(x) }")
    assert declined(ConvertFloat16(), model) == ""


def test_subgraphs_are_refused():
    body = """g (bool c, float[2] x) => (float[2] y) {
      y = If (c) <then_branch = a () => (float[2] o) { o = Identity(x) },
                  else_branch = b () => (float[2] o) { o = Neg(x) }>
    }"""
    with pytest.raises(PassRefused, match="holds a subgraph"):
        ConvertFloat16().requires(graph(body))


def test_an_output_that_a_node_leaves_out_stays_left_out():
    """ONNX Runtime types the mean of a norm as float32: a name would make it part of the graph."""
    body = """g (float[b,s,4] x, float[b,s,4] r) => (float[b,s,4] y, float[b,s,4] t) {
      y, , , t = com.microsoft.SkipSimplifiedLayerNormalization(x, r, w)
    }"""
    model = graph(body, w=np.ones(4, np.float32))
    before, _ = both(model, x=halves(1, 2, 4), r=halves(1, 2, 4, seed=1))
    Cleanup()(model)
    assert not Cleanup()(model).modified
    assert [output.name for output in node(model, "SkipSimplifiedLayerNormalization").outputs][1:3] == [
        "",
        "",
    ]
    after = run(model, {"x": halves(1, 2, 4), "r": halves(1, 2, 4, seed=1)})
    np.testing.assert_allclose(after[0], before[0], rtol=4e-3, atol=4e-3)
