"""Both exporters' spellings become one, nothing is computed differently, and no weight is read."""

import numpy as np
import onnx_ir as ir
import pytest
from legacy_exports import decoder_feeds, legacy_decoder, legacy_encoder
from small_graphs import apply, graph, ops, random, run, untouchable, worst

from onnxforge.passes import notes
from onnxforge.passes.canonicalize import Canonicalize

X = {"x": random(2, 3, 8)}


def kept(model: ir.Model) -> str:
    """Canonicalize a graph whose nodes must stay as they are, and return the reasons it gave."""
    before = [(item.op_type, [value.name for value in item.inputs]) for item in model.graph]
    opset, initializers = dict(model.opset_imports), sorted(model.graph.initializers)
    with notes.listen() as said:
        Canonicalize()(model)
    assert [(item.op_type, [value.name for value in item.inputs]) for item in model.graph] == before
    assert (dict(model.opset_imports), sorted(model.graph.initializers)) == (opset, initializers)
    return "; ".join(f"{note.what}: {note.reason}" for note in said)


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("a = Identity(x)", ["Relu"]),
        ("a = Dropout(x)", ["Relu"]),
        ("a = Cast<to=1>(x)", ["Relu"]),
        ("a = Transpose<perm=[0,1,2]>(x)", ["Relu"]),
        ("o = Constant<value_float=1.0>()\n a = Mul(o, x)", ["Relu"]),
        ("o = Constant<value_float=0.0>()\n a = Sub(x, o)", ["Relu"]),
        ("o = Constant<value_float=1.0>()\n a = Div(o, x)", ["Div", "Relu"]),
        ("o = Constant<value_float=0.0>()\n a = Sub(o, x)", ["Sub", "Relu"]),
        ("to = Shape(x)\n a = Reshape(x, to)", ["Relu"]),
        ("to = Shape(x)\n a = Expand(x, to)", ["Relu"]),
        ("a = Concat<axis=1>(x)", ["Relu"]),
        ("p = Neg(x)\n q = Neg(x)\n a = Mul(p, q)", ["Neg", "Mul", "Relu"]),
    ],
)
def test_what_does_nothing_goes(step, left):
    before = graph(f"g (float[b,s,8] x) => (float[b,s,8] y) {{ {step}\n y = Relu(a) }}")
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == left
    assert worst(before, after, X) == 0


def test_a_no_op_between_an_input_and_an_output_stays_because_names_are_the_contract():
    model = graph("g (float[b,8] x) => (float[b,8] y) { y = Identity(x) }")
    kept(model)
    assert ops(model) == ["Identity"]


def test_a_multiplication_that_broadcasts_is_no_no_op():
    model = graph(
        "g (float[8] x) => (float[1,8] y) { a = Mul(x, one)\n y = Relu(a) }", one=np.ones((1, 1), np.float32)
    )
    kept(model)


def test_a_cast_that_rounds_stays():
    model = graph("g (float[b,8] x) => (float[b,8] y) { a = Cast<to=10>(x)\n y = Cast<to=1>(a) }")
    kept(model)


def test_a_head_split_written_with_shapes_gets_a_constant_target():
    before = graph(
        """g (float[b,s,8] x) => (float[b,2,s,4] y) {
             shape = Shape(x)
             zero = Constant<value_int=0>()
             one = Constant<value_int=1>()
             axis = Constant<value_ints=[0]>()
             b0 = Gather<axis=0>(shape, zero)
             s0 = Gather<axis=0>(shape, one)
             b1 = Unsqueeze(b0, axis)
             s1 = Unsqueeze(s0, axis)
             rest = Constant<value_ints=[-1]>()
             four = Constant<value_ints=[4]>()
             target = Concat<axis=0>(b1, s1, rest, four)
             split = Reshape(x, target)
             y = Transpose<perm=[0,2,1,3]>(split)
           }"""
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["Reshape", "Transpose"]
    target = after.graph[0].inputs[1].const_value
    assert target.numpy().tolist() == [0, 0, 2, 4]
    assert str(after.graph[0].outputs[0].shape) == "[b,s,2,4]"
    assert worst(before, after, X) == 0


def test_a_target_with_two_open_sizes_stays_computed():
    model = graph(
        """g (float[b,s,8] x, float[p,8] z) => (float[p,q,8] y) {
             shape = Shape<start=0, end=1>(z)
             rest = Constant<value_ints=[-1, 8]>()
             target = Concat<axis=0>(shape, rest)
             y = Reshape(x, target)
           }"""
    )
    apply(Canonicalize(), model)
    assert ops(model) == ["Shape", "Concat", "Reshape"]


def test_gemm_becomes_matmul_and_add_over_a_lazily_transposed_weight():
    weight, bias = random(16, 8, seed=1), random(16, seed=2)
    before = graph(
        "g (float[n,8] x) => (float[n,16] y) { y = Gemm<transB=1>(x, w, bias) }", w=weight, bias=bias
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["MatMul", "Add"]
    kept = after.graph.initializers["w"].const_value
    assert isinstance(kept, ir.LazyTensor)
    assert tuple(kept.shape) == (8, 16)
    assert worst(before, after, {"x": random(5, 8)}) < 1e-6


def test_a_scaled_gemm_stays():
    model = graph("g (float[n,8] x) => (float[n,4] y) { y = Gemm<alpha=0.5>(x, w) }", w=random(8, 4))
    kept(model)


def test_a_matmul_between_flattening_reshapes_runs_on_three_axes():
    before = graph(
        """g (float[b,s,8] x) => (float[b,s,6] y) {
             flat_to = Constant<value_ints=[-1, 8]>()
             flat = Reshape(x, flat_to)
             p = MatMul(flat, w)
             q = Add(p, bias)
             lead = Shape<start=0, end=2>(x)
             six = Constant<value_ints=[6]>()
             back_to = Concat<axis=0>(lead, six)
             y = Reshape(q, back_to)
           }""",
        w=random(8, 6, seed=1),
        bias=random(6, seed=2),
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["MatMul", "Add"]
    assert worst(before, after, X) < 1e-6


def test_a_reshape_that_regroups_rows_keeps_its_flattening():
    model = graph(
        """g (float[4,6,8] x) => (float[8,3,6] y) {
             flat = Reshape(x, flat_to)
             p = MatMul(flat, w)
             y = Reshape(p, back_to)
           }""",
        w=random(8, 6),
        flat_to=np.array([-1, 8]),
        back_to=np.array([8, 3, 6]),
    )
    kept(model)


def test_no_weight_is_read():
    model = graph(
        """g (int64[b,s] ids, float[b,s,80] x) => (float[b,s,70] y, float[b,s,80] z, float[b,s,90] l) {
             t = Transpose<perm=[1,0]>(w)
             a = MatMul(x, t)
             y = Add(a, bias)
             one = Constant<value_float=1.0>()
             scale = Add(one, norm)
             z = Mul(x, scale)
             e = Gather(table, ids)
             et = Transpose<perm=[1,0]>(table)
             l = MatMul(e, et)
           }""",
        w=untouchable(70, 80),
        bias=untouchable(70),
        norm=untouchable(80),
        table=untouchable(90, 80),
    )
    apply(Canonicalize(), model)
    assert ops(model) == ["MatMul", "Add", "Mul", "Gather", "Transpose", "MatMul"]
    assert tuple(model.graph.initializers["w"].const_value.shape) == (80, 70)
    assert tuple(model.graph.initializers["norm"].const_value.shape) == (80,)
    with pytest.raises(AssertionError, match="read a weight"):
        model.graph.initializers["w"].const_value.numpy()


def test_lazy_weights_hold_the_right_numbers():
    weight, norm = random(70, 80, seed=1), random(80, seed=2)
    before = graph(
        """g (float[b,s,80] x) => (float[b,s,70] y) {
             one = Constant<value_float=1.0>()
             scale = Add(norm, one)
             z = Mul(x, scale)
             t = Transpose<perm=[1,0]>(w)
             y = MatMul(z, t)
           }""",
        w=ir.LazyTensor(lambda: ir.tensor(weight), dtype=ir.DataType.FLOAT, shape=ir.Shape([70, 80])),
        norm=ir.LazyTensor(lambda: ir.tensor(norm), dtype=ir.DataType.FLOAT, shape=ir.Shape([80])),
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["Mul", "MatMul"]
    assert worst(before, after, {"x": random(2, 3, 80)}) < 1e-5


def test_a_weight_with_two_readers_is_not_stored_twice():
    model = graph(
        """g (float[n,8] x, float[n,6] z) => (float[n,6] y, float[n,8] v) {
             t = Transpose<perm=[1,0]>(w)
             y = MatMul(x, t)
             v = MatMul(z, w)
           }""",
        w=random(6, 8),
    )
    kept(model)


def test_an_old_graph_is_raised_to_opset_23():
    before = graph(
        """g (float[b,s,8] x) => (float[b,s,1] m, float[s,8] u) {
             m = ReduceMean<axes=[-1], keepdims=1>(x)
             a, c = Split<axis=0, split=[1, 1]>(x)
             u = Squeeze<axes=[0]>(a)
           }""",
        opset=12,
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert after.opset_imports[""] == 23
    assert worst(before, after, X) < 1e-6


def test_an_operator_whose_meaning_changed_keeps_the_old_opset():
    model = graph(
        "g (float[1,1,4,4] x) => (float[1,1,8,8] y) { y = Resize(x, roi, scales) }",
        opset=11,
        roi=random(0),
        scales=np.array([1, 1, 2, 2], np.float32),
    )
    reason = kept(model)
    assert "Resize" in reason
    assert "newer opset" in reason


def test_softmax_of_opset_11_over_inner_axes_is_not_raised():
    model = graph("g (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax<axis=1>(x) }", opset=11)
    assert "Softmax" in kept(model)


def test_functions_are_inlined():
    text = """<ir_version: 10, opset_import: ["" : 23, "local" : 1]>
    g (float[b,8] x) => (float[b,8] y) { y = local.twice(x) }
    <domain: "local", opset_import: ["" : 23]> twice (a) => (c) { c = Add(a, a) }"""
    model = ir.from_onnx_text(text)
    apply(Canonicalize(), model)
    assert ops(model) == ["Add"]


def test_a_graph_with_control_flow_survives():
    before = graph(
        """g (float[b,8] x, bool flag) => (float[b,8] y) {
             two = Constant<value_float=2.0>()
             y = If (flag) <
               then_branch = t () => (float[b,8] p) { p = Mul(x, two) },
               else_branch = e () => (float[b,8] q) { q = Neg(x) }
             >
           }"""
    )
    after = before.clone()
    Canonicalize()(after)
    for flag in (True, False):
        assert worst(before, after, {"x": random(2, 8), "flag": np.array(flag)}) == 0


DECODERS = ("llama", "gemma3_text", "phi", "gpt_neox", "gpt2")


@pytest.mark.parametrize("family", DECODERS)
def test_torchscript_decoders_compute_the_same(tiny_torch, family):
    before = legacy_decoder(tiny_torch(family))
    after = before.clone()
    apply(Canonicalize(), after)
    assert len(after.graph) < 0.4 * len(before.graph)
    assert not {"Constant", "Identity", "Gemm"} & set(ops(after))
    for batch, new, past in ((1, 4, 0), (2, 3, 5), (2, 1, 7)):
        assert worst(before, after, decoder_feeds(before, batch, new, past)) < 1e-6


def test_a_torchscript_encoder_computes_the_same(tiny_torch):
    before = legacy_encoder(tiny_torch("bert", "feature-extraction"))
    after = before.clone()
    apply(Canonicalize(), after)
    feeds = {
        "input_ids": np.arange(3, 17).reshape(2, 7),
        "attention_mask": np.array([[1] * 7, [1] * 4 + [0] * 3]),
    }
    assert worst(before, after, feeds) == 0
    assert "LayerNormalization" in ops(after)


@pytest.mark.parametrize(("family", "config"), [("llama", {"hidden_size": 64}), ("gpt2", {"n_embd": 64})])
def test_our_own_exports_compute_the_same(tiny_export, family, config):
    before = tiny_export(family, **config)
    after = before.clone()
    apply(Canonicalize(), after)
    assert worst(before, after, decoder_feeds(before, 2, 3, 5)) < 1e-6


def test_equal_sizes_are_taken_from_one_place():
    model = graph(
        """g (float[b,s,8] x, float[b,s,4] z) => (int64[s] y, int64[s] v) {
             zero = Constant<value_int=0>()
             one = Constant<value_int=1>()
             xs = Shape(x)
             zs = Shape(z)
             a = Gather<axis=0>(xs, one)
             c = Gather<axis=0>(zs, one)
             y = Range(zero, a, one)
             d = Add(c, one)
             v = Range(one, d, one)
           }"""
    )
    apply(Canonicalize(), model)
    assert ops(model).count("Gather") == 1
    assert run(model, {"x": random(2, 3, 8), "z": random(2, 3, 4)})[1].tolist() == [1, 2, 3]


def test_initializers_that_old_files_list_as_inputs_are_constants():
    model = graph("g (float[n,8] x, float[6,8] w) => (float[n,6] y) { t = Transpose(w)\n y = MatMul(x, t) }")
    weight = model.graph.inputs[1]
    weight.const_value = ir.tensor(random(6, 8), name="w")
    model.graph.register_initializer(weight)
    apply(Canonicalize(), model)
    assert ops(model) == ["MatMul"]
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_torch_split_becomes_one_node():
    before = graph(
        """g (float[b,s,8] x) => (float[b,s,3] y, float[b,s,2] z) {
             parts = SplitToSequence<axis=-1>(x, three)
             y = SequenceAt(parts, one)
             z = SequenceAt(parts, last)
           }""",
        three=np.array(3),
        one=np.array(1),
        last=np.array(-1),
    )
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["Split"]
    assert worst(before, after, X) == 0


HEAD = """g (int64[b,s] ids) => (float[b,s,90] l) {
  e = Gather(table, ids)
  l = MatMul(e, head)
}"""


def test_a_head_stored_as_transposed_embedding_is_one_weight_again():
    table = random(90, 80)
    before = graph(HEAD, table=table, head=np.ascontiguousarray(table.T))
    after = before.clone()
    apply(Canonicalize(), after)
    assert ops(after) == ["Gather", "Transpose", "MatMul"]
    assert sorted(after.graph.initializers) == ["table"]
    assert worst(before, after, {"ids": np.array([[1, 89, 3]])}) < 1e-5


def test_a_head_of_its_own_stays_and_lazy_ones_are_not_compared():
    other = random(80, 90, seed=1)
    other[:, :-1] = random(90, 80).T[:, :-1]
    kept(graph(HEAD, table=random(90, 80), head=other))
    kept(graph(HEAD, table=untouchable(90, 80), head=untouchable(80, 90)))
