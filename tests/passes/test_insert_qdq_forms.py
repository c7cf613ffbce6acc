"""Every form that insert-qdq writes: its text, its numbers, that the CPU fuses it; what is refused."""

import dataclasses
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from small_graphs import apply, declined, graph, node, ops, random, run
from test_fold_scales import calibrated

from onnxforge.passes.activation_range import annotate, range_of
from onnxforge.passes.base import PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.qdq_scheme import ACTIVATIONS, WEIGHTS

ONE = """g (float[b,s,64] x) => (float[b,s,96] y) {
  n = Tanh(x)
  y = MatMul(n, w)
}"""
FEEDS = {"x": random(2, 9, 64)}
SMALL = {"min_elements": 1}


def one(body: str = ONE, opset: int = 23, **weights: np.ndarray) -> ir.Model:
    model = graph(body, opset, **(weights or {"w": random(64, 96, seed=1)}))
    calibrated(model, FEEDS, "n")
    return model


def loaded(model: ir.Model, feeds: dict[str, np.ndarray]) -> tuple[list[np.ndarray], Counter[str]]:
    """Outputs with ONNX Runtime's optimizers on, and the operators that it ran."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/optimized.onnx"
        proto = ir.to_proto(model).SerializeToString()
        session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
        outputs = session.run(None, feeds)
        ran = ir.load(Path(options.optimized_model_filepath))
    return outputs, Counter(item.op_type for item in ran.graph)


def distance(got: np.ndarray, meant: np.ndarray) -> float:
    return float(np.linalg.norm(got - meant) / np.linalg.norm(meant))


def test_static_activations_in_text():
    model = one()
    apply(InsertQdq(), model)
    assert [
        (item.op_type, *(value.name for value in item.inputs), item.outputs[0].name) for item in model.graph
    ] == [
        ("Tanh", "x", "n"),
        ("QuantizeLinear", "n", "n.step", "n.zero", "n.q"),
        ("DequantizeLinear", "n.q", "n.step", "n.zero", "n.dq"),
        ("DequantizeLinear", "w.int8", "w.steps", "w.dequantized"),
        ("MatMul", "n.dq", "w.dequantized", "y"),
    ]
    assert sorted(model.graph.initializers) == ["n.step", "n.zero", "w.int8", "w.steps"]
    assert model.graph[3].attributes["axis"].as_int() == 1


@pytest.mark.parametrize(
    ("options", "attributes", "steps"),
    [
        ({"granularity": "tensor"}, {}, ()),
        ({"granularity": "channel"}, {"axis": 1}, (96,)),
        ({"granularity": "block", "block_size": 16}, {"axis": 0, "block_size": 16}, (4, 96)),
    ],
)
def test_weights_alone_in_text(options, attributes, steps):
    model = one()
    apply(InsertQdq(activations="none", weights="uint4", symmetric=False, **options), model)
    assert ops(model) == ["Tanh", "DequantizeLinear", "MatMul"]
    weight = node(model, "DequantizeLinear")
    assert [value.name for value in weight.inputs] == ["w.uint4", "w.steps", "w.zeros"]
    assert {name: item.as_int() for name, item in weight.attributes.items()} == attributes
    assert tuple(model.graph.initializers["w.steps"].shape) == steps
    assert model.graph.initializers["w.zeros"].dtype == ir.DataType.UINT4


FORMS = [
    {"weights": weights, "granularity": granularity, "symmetric": symmetric, "activations": activations}
    for weights, granularity, symmetric, activations in itertools.product(
        WEIGHTS, ("tensor", "channel", "block"), (True, False), ACTIVATIONS
    )
]
BITS = {"int8": 0.02, "uint8": 0.02, "int4": 0.25, "uint4": 0.25, "int16": 0.02}


def is_refused(options: dict[str, object]) -> bool:
    try:
        InsertQdq(**options).requires(one())
    except PassRefused:
        return True
    return False


def test_the_forms_that_the_cpu_runs_are_these():
    allowed = [form for form in FORMS if not is_refused(form)]
    weights_alone = 4 * 3 * 2  # every 8- and 4-bit type, any granularity
    both = 2 * 2 * 2 * 2  # 8-bit types on both sides, no blocks
    assert len(allowed) == weights_alone + both


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_every_form_means_what_it_says(form):
    """Anyone's runtime: the numbers with all optimizers off. Ours: fused, and the same to int8 rounding."""
    model = one()
    before = run(model, FEEDS)[0]
    InsertQdq(**form, provider="any")(model)
    after = run(model, FEEDS)[0]
    assert distance(after, before) < BITS[form["weights"]]
    if is_refused(form):
        return
    (got,), ran = loaded(model, FEEDS)
    assert distance(got, after) < 0.02
    assert "MatMulNBits" in ran if form["activations"] == "none" else "MatMulIntegerToFloat" in ran
    assert ran["DequantizeLinear"] == 0


@pytest.mark.parametrize("weights", ["int8", "uint8"])
@pytest.mark.parametrize("activations", ["int8", "uint8"])
def test_what_the_cpu_is_said_to_fail_on_it_fails_on(weights, activations):
    model = one()
    InsertQdq(weights=weights, activations=activations, granularity="block", provider="any")(model)
    with pytest.raises(Exception, match="MatMulIntegerToFloat"):
        loaded(model, FEEDS)


@pytest.mark.parametrize(
    "form",
    [
        {"weights": "int16", "activations": "none"},
        {"weights": "int4"},
        {"activations": "uint16"},
    ],
    ids=str,
)
def test_what_the_cpu_is_said_to_dequantize_again_it_does(form):
    model = one()
    InsertQdq(**form, provider="any")(model)
    _, ran = loaded(model, FEEDS)
    assert ran["DequantizeLinear"] >= 1
    assert ran["MatMul"] == 1


def test_symmetric_activations_have_their_zero_in_the_middle():
    for activations, middle in (("int8", 0), ("uint8", 128)):
        model = one()
        before = run(model, FEEDS)[0]
        apply(InsertQdq(activations=activations, symmetric_activations=True), model)
        assert int(model.graph.initializers["n.zero"].const_value.numpy()) == middle
        assert distance(run(model, FEEDS)[0], before) < 0.02


def test_dynamic_activations_need_no_calibration_and_say_what_they_cost():
    model = graph(ONE, w=random(64, 96, seed=1))
    before = run(model, FEEDS)[0]
    said = apply(InsertQdq(dynamic=True), model)
    assert ops(model) == ["Tanh", "DynamicQuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul"]
    assert any("a token's result depends on the others" in note.reason for note in said)
    assert distance(run(model, FEEDS)[0], before) < 0.02
    _, ran = loaded(model, FEEDS)
    assert ran["DynamicQuantizeMatMul"] == 1
    alone = run(model, {"x": FEEDS["x"][:1, :1]})[0]
    assert not np.array_equal(alone[0, 0], run(model, FEEDS)[0][0, 0]), "or the note is wrong"


@pytest.mark.parametrize(
    "last",
    ["y = Gemm<transB=1>(n, w, bias)", "t = Transpose(w) p = MatMul(n, t) y = Add(p, bias)"],
    ids=["Gemm", "MatMul"],
)
def test_a_matrix_with_a_bias_is_multiplied_in_a_form_that_fuses(last):
    """ONNX Runtime makes one Gemm of it again, unless something stands between product and bias."""
    body = f"g (float[7,64] x) => (float[7,96] y) {{ n = Tanh(x) {last} }}"
    feeds = {"x": random(7, 64)}
    model = graph(body, w=random(96, 64), bias=random(96))
    model.graph[0].outputs[0].shape = ir.Shape([7, 64])
    calibrated(model, feeds, "n")
    before = run(model, feeds)[0]
    apply(InsertQdq(), model)
    kinds = ["Tanh", "Unsqueeze", "QuantizeLinear", "DequantizeLinear", "DequantizeLinear"]
    assert ops(model) == [*kinds, "MatMul", "Squeeze", "Add"]
    assert "w" not in model.graph.initializers
    assert distance(run(model, feeds)[0], before) < 0.02
    _, ran = loaded(model, feeds)
    assert ran["MatMulIntegerToFloat"] == 1
    assert ran["DequantizeLinear"] == 0


def test_weights_alone_fuse_under_a_gemm():
    body = "g (float[7,64] x) => (float[7,96] y) { n = Tanh(x) y = Gemm(n, w, bias) }"
    model = graph(body, w=random(64, 96), bias=random(96))
    apply(InsertQdq(activations="none"), model)
    assert ops(model) == ["Tanh", "DequantizeLinear", "MatMul", "Add"]
    assert loaded(model, {"x": random(7, 64)})[1]["MatMulNBits"] == 1


def test_a_scaled_gemm_is_no_plain_product():
    body = "g (float[r,64] x) => (float[r,96] y) { n = Tanh(x) y = Gemm<alpha=0.5>(n, w) }"
    model = graph(body, w=random(64, 96))
    assert not InsertQdq(activations="none")(model).modified


def test_a_weight_behind_a_transpose_is_turned_once_for_both_readers():
    body = """g (float[b,s,64] x) => (float[b,s,96] y, float[b,s,96] z) {
      n = Tanh(x)
      t = Transpose<perm=[1,0]>(w)
      y = MatMul(n, t)
      z = MatMul(x, t)
    }"""
    model = graph(body, w=random(96, 64))
    before = run(model, FEEDS)
    apply(InsertQdq(activations="none"), model)
    assert ops(model) == ["Tanh", "DequantizeLinear", "MatMul", "MatMul"]
    assert sorted(model.graph.initializers) == ["w.turned.int8", "w.turned.steps"]
    for got, meant in zip(run(model, FEEDS), before, strict=True):
        assert distance(got, meant) < 0.02


LOOKUP = "g (int64[b,s] ids) => (float[b,s,64] y) { t = Gather(e, ids) y = Neg(t) }"


@pytest.mark.parametrize("granularity", ["tensor", "channel", "block"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_lookup_restores_only_the_rows_it_takes(granularity, symmetric):
    table, ids = (
        random(50, 64) * np.linspace(0.1, 4, 50, dtype=np.float32)[:, None],
        np.arange(12).reshape(3, 4),
    )
    model = graph(LOOKUP, e=table)
    step = InsertQdq(
        embeddings=True,
        activations="none",
        granularity=granularity,
        symmetric=symmetric,
        weights="uint8",
        **SMALL,
    )
    apply(step, model)
    assert "e" not in model.graph.initializers
    got = -run(model, {"ids": ids})[0]
    bound = (np.abs(table).max(axis=1) if granularity != "tensor" else np.abs(table).max()) / 127
    assert (np.abs(got - table[ids]).max(axis=-1) <= np.broadcast_to(bound, 50)[ids]).all()
    _, ran = loaded(model, {"ids": ids})
    assert ran["DequantizeLinear"] == 1


def test_lookups_stay_float_unless_asked():
    assert not InsertQdq(activations="none", **SMALL)(graph(LOOKUP, e=random(50, 64))).modified


def test_only_is_the_opposite_of_skip():
    model = one()
    assert "does not match only='head'" in declined(InsertQdq(only="head"), model)
    assert InsertQdq(only="^w$")(model).modified


def test_a_width_that_blocks_do_not_divide_stays_float():
    model = graph(ONE.replace("64", "80"), w=random(80, 96))
    step = InsertQdq(activations="none", granularity="block", block_size=32)
    assert "no multiple of block_size 32" in declined(step, model)


TENSORRT = {"provider": "tensorrt", "activations": "int8", "symmetric_activations": True}


def test_tensorrt_takes_one_form():
    model = one()
    apply(InsertQdq(**TENSORRT), model)
    quantize = node(model, "QuantizeLinear")
    assert int(model.graph.initializers[quantize.inputs[2].name].const_value.numpy()) == 0
    assert model.graph.initializers["n.zero"].dtype == ir.DataType.INT8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"only": "["}, "only is no regular expression"),
        ({"weights": "int3"}, "weights is 'int3'"),
        ({"granularity": "row"}, "granularity is 'row'"),
        ({"activations": "float"}, "activations is 'float'"),
        ({"block_size": 48}, "block_size is 48"),
        ({"provider": "npu"}, "provider is 'npu'"),
        ({"dynamic": True, "activations": "int8"}, "DynamicQuantizeLinear makes asymmetric uint8"),
        ({"reduce_range": True, "weights": "uint8"}, "reduce_range"),
        ({"embeddings": True, "weights": "int4", "activations": "none"}, "Gather has no kernel"),
        ({"granularity": "block"}, "fails when it runs"),
        ({"granularity": "block", "dynamic": True}, "fails when it runs"),
        ({"weights": "int4"}, "no kernel that multiplies 8-bit activations by int4"),
        ({"activations": "int16"}, "no kernel for int16 activations"),
        ({"weights": "int16", "activations": "none"}, "no kernel for 16-bit weights"),
        ({"provider": "cuda"}, "CUDA has no int8 product"),
        ({"provider": "cuda", "activations": "none", "weights": "int16"}, "16-bit weights"),
        ({"provider": "cuda", "activations": "none", "embeddings": True}, "GatherBlockQuantized"),
        ({"provider": "tensorrt"}, "int8 activations with zero points of 0"),
        ({"provider": "tensorrt", "activations": "none"}, "only where both sides are"),
        ({"provider": "tensorrt", "dynamic": True}, "no DynamicQuantizeLinear"),
        (TENSORRT | {"symmetric_activations": False}, "zero points of 0"),
        (TENSORRT | {"symmetric": False}, "int8 weights with zero points of 0"),
        (TENSORRT | {"granularity": "block"}, "scale per block"),
        (TENSORRT | {"embeddings": True}, "no Gather of int8"),
    ],
    ids=str,
)
def test_refusals_say_why_and_what_else(options, says):
    with pytest.raises(PassRefused, match=says):
        InsertQdq(**options).requires(one())


@pytest.mark.parametrize(
    "options",
    [
        {"activations": "none", "weights": "int4"},
        {"activations": "none", "granularity": "block"},
        {"activations": "none", "embeddings": True},
        {"provider": "any", "activations": "uint16"},
    ],
    ids=str,
)
def test_an_old_graph_cannot_say_it(options):
    with pytest.raises(PassRefused, match="needs opset 21 and the graph has 17"):
        InsertQdq(**options).requires(one(opset=17))
    InsertQdq().requires(one(opset=17))


def test_a_chosen_range_clips():
    model = one()
    value = model.graph[0].outputs[0]
    seen = range_of(value)
    annotate(value, dataclasses.replace(seen, chosen=(-0.5, 0.25)))
    InsertQdq(min_sqnr_db=0)(model)
    step = float(model.graph.initializers["n.step"].const_value.numpy())
    assert step == pytest.approx(0.75 / 255)
    model.graph.outputs.append(next(v for item in model.graph for v in item.outputs if v.name == "n.dq"))
    rounded = run(model, FEEDS)[1]
    assert rounded.max() == pytest.approx(0.25, abs=step)
    assert rounded.min() == pytest.approx(-0.5, abs=step)
