"""Every spelling of RMS norm and layer norm becomes the standard operator, with the same numbers."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from legacy_exports import decoder_feeds, legacy_decoder
from small_graphs import apply, declined, graph, node, ops, random, untouchable, worst

from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.fuse_norm import FuseNorm

X = {"x": random(2, 3, 16)}
MEAN = {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32), "axis": np.array([-1])}

SQUARES = {"pow": "q = Pow(x, two)", "mul": "q = Mul(x, x)"}
ROOTS = {
    "div": "r = Sqrt(e)\n n = Div(x, r)",
    "one over": "r = Sqrt(e)\n i = Div(one, r)\n n = Mul(x, i)",
    "reciprocal": "r = Sqrt(e)\n i = Reciprocal(r)\n n = Mul(i, x)",
    "power": "i = Pow(e, minus_half)\n n = Mul(x, i)",
}
WEIGHTS = {"behind": "y = Mul(n, w)", "before": "y = Mul(w, n)"}
NUMBERS = MEAN | {"one": np.array(1, np.float32), "minus_half": np.array(-0.5, np.float32)}


def used(body: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    return {name: array for name, array in arrays.items() if name in words}


def norm_graph(*steps: str, **extra: np.ndarray | ir.TensorProtocol) -> ir.Model:
    body = "\n".join(steps)
    model = graph(
        f"g (float[b,s,16] x) => (float[b,s,16] y) {{ {body} }}",
        **used(body, NUMBERS | {"w": random(16, seed=1), "c": random(16, seed=2)} | extra),
    )
    Canonicalize()(model)
    return model


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("square", SQUARES)
def test_rms_norm_in_every_spelling(square, root, weight):
    mean = "m = ReduceMean<keepdims=1>(q, axis)\n e = Add(m, eps)"
    before = norm_graph(SQUARES[square], mean, ROOTS[root], WEIGHTS[weight])
    after = before.clone()
    apply(FuseNorm(), after)
    assert ops(after) == ["RMSNormalization"]
    assert node(after, "RMSNormalization").attributes["epsilon"].as_float() == pytest.approx(1e-5)
    assert worst(before, after, X) < 2e-6
    onnx.checker.check_model(ir.to_proto(after))


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_with_and_without_bias(root, bias):
    steps = ["mu = ReduceMean<keepdims=1>(x, axis)", "d = Sub(x, mu)", "q = Pow(d, two)"]
    steps += [
        "m = ReduceMean<keepdims=1>(q, axis)",
        "e = Add(eps, m)",
        ROOTS[root].replace("(x,", "(d,").replace(" x)", " d)"),
    ]
    steps += ["z = Mul(n, w)", "y = Add(z, c)"] if bias else ["y = Mul(w, n)"]
    before = norm_graph(*steps)
    after = before.clone()
    apply(FuseNorm(), after)
    assert ops(after) == ["LayerNormalization"]
    assert len(node(after, "LayerNormalization").inputs) == 2 + bias
    assert worst(before, after, X) < 2e-6


MEAN_SQUARE = ("q = Pow(x, two)", "m = ReduceMean<keepdims=1>(q, axis)")
RMS = (*MEAN_SQUARE, "e = Add(m, eps)", "r = Sqrt(e)", "n = Div(x, r)")


def test_gemma_adds_one_to_a_weight_that_nobody_reads():
    model = norm_graph(*RMS, "s = Add(w, one)", "y = Mul(n, s)", w=untouchable(16))
    apply(FuseNorm(), model)
    assert ops(model) == ["RMSNormalization"]
    assert isinstance(node(model, "RMSNormalization").inputs[1].const_value, ir.LazyTensor)


def test_a_norm_without_weight_gets_ones():
    before = norm_graph(*RMS, "y = Neg(n)")
    after = before.clone()
    apply(FuseNorm(), after)
    assert ops(after) == ["RMSNormalization", "Neg"]
    assert worst(before, after, X) < 2e-6


def test_a_bias_behind_an_rms_norm_stays_outside():
    before = norm_graph(*RMS, "z = Mul(n, w)", "y = Add(z, c)")
    after = before.clone()
    apply(FuseNorm(), after)
    assert ops(after) == ["RMSNormalization", "Add"]
    assert worst(before, after, X) < 2e-6


def test_casts_to_float32_and_back_go_inside():
    before = graph(
        """g (float16[b,s,16] x) => (float16[b,s,16] y) {
             x32 = Cast<to=1>(x)
             q = Pow(x32, two)
             m = ReduceMean<keepdims=1>(q, axis)
             e = Add(m, eps)
             r = Sqrt(e)
             n = Div(x32, r)
             n16 = Cast<to=10>(n)
             y = Mul(w, n16)
           }""",
        **MEAN,
        w=random(16, seed=1).astype(np.float16),
    )
    Canonicalize()(before)
    after = before.clone()
    apply(FuseNorm(), after)
    assert ops(after) == ["RMSNormalization"]
    assert worst(before, after, {"x": random(2, 3, 16).astype(np.float16)}) < 5e-3


def test_a_float32_weight_keeps_the_cast_back_outside():
    model = graph(
        """g (float16[b,s,16] x) => (float16[b,s,16] y) {
             x32 = Cast<to=1>(x)
             q = Pow(x32, two)
             m = ReduceMean<keepdims=1>(q, axis)
             e = Add(m, eps)
             r = Sqrt(e)
             n = Div(x32, r)
             z = Mul(w, n)
             y = Cast<to=10>(z)
           }""",
        **MEAN,
        w=random(16, seed=1),
    )
    Canonicalize()(model)
    apply(FuseNorm(), model)
    assert ops(model) == ["Cast", "RMSNormalization", "Cast"]


def test_the_name_of_onnx_runtime_becomes_the_standard_one():
    step = "y = SimplifiedLayerNormalization<axis=-1, epsilon=1e-5>(x, w)"
    model = graph(f"g (float[b,s,16] x) => (float[b,s,16] y) {{ {step} }}", w=random(16))
    apply(FuseNorm(), model)
    assert ops(model) == ["RMSNormalization"]
    assert worst(model, model, X) == 0


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        (
            ("q = Pow(x, two)", "m = ReduceMean<keepdims=1>(q, first)", *RMS[2:4], "y = Div(x, r)"),
            "last axis",
        ),
        ((*MEAN_SQUARE, "r = Sqrt(m)", "y = Div(x, r)"), "epsilon"),
        ((*RMS[:4], "z = Neg(x)", "y = Div(z, r)"), "divide"),
    ],
)
def test_what_is_almost_a_norm_is_left_alone_with_the_reason(steps, reason):
    assert reason in declined(FuseNorm(), norm_graph(*steps, first=np.array([1])))


def test_an_old_opset_has_no_such_operator():
    model = graph(
        """g (float[b,s,16] x) => (float[b,s,16] y) {
             q = Pow(x, two)
             m = ReduceMean<keepdims=1, axes=[-1]>(q)
             e = Add(m, eps)
             r = Sqrt(e)
             y = Div(x, r)
           }""",
        opset=17,
        two=MEAN["two"],
        eps=MEAN["eps"],
    )
    assert "exists since 23" in declined(FuseNorm(), model)


@pytest.mark.parametrize(("family", "norms"), [("llama", 11), ("gemma3_text", 31)])
def test_torchscript_decoders(tiny_torch, family, norms):
    before = legacy_decoder(tiny_torch(family))
    after = before.clone()
    Canonicalize()(after)
    apply(FuseNorm(), after)
    assert ops(after).count("RMSNormalization") == norms
    assert "ReduceMean" not in ops(after)
    assert worst(before, after, decoder_feeds(before, 2, 3, 5)) < 2e-5
