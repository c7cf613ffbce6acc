"""Activations are recognised by their values, in any spelling."""

import numpy as np
import pytest
from small_graphs import apply, declined, graph, node, ops, random, worst

from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.fuse_activation import FuseActivation

X = {"x": random(2, 3, 16, scale=3.0)}
NUMBERS = {
    "root2": 2**0.5,
    "inverse": 0.5**0.5,
    "one": 1.0,
    "half": 0.5,
    "cube": 0.044715,
    "three": 3.0,
    "slope": 0.7978845608,
    "alpha": 1.702,
    "odd": 0.7,
    "cap": 30.0,
}
GELU = ["d = Div(x, root2)", "e = Erf(d)", "p = Add(e, one)"]
CUBE = ["x2 = Mul(x, x)", "k = Mul(x2, x)"]
TANH = [
    "k = Pow(x, three)",
    "c = Mul(k, cube)",
    "i = Add(x, c)",
    "j = Mul(i, slope)",
    "t = Tanh(j)",
    "p = Add(t, one)",
]


def activation(*steps: str, opset: int = 23):
    body = "\n".join(steps)
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {name: np.array(number, np.float32) for name, number in NUMBERS.items() if name in words}
    return graph(f"g (float[b,s,16] x) => (float[b,s,16] y) {{ {body} }}", opset, **arrays)


@pytest.mark.parametrize(
    ("steps", "op_type", "attribute"),
    [
        ([*GELU, "q = Mul(x, p)", "y = Mul(q, half)"], "Gelu", None),
        ([*GELU, "q = Mul(half, p)", "y = Mul(q, x)"], "Gelu", None),
        ([*GELU, "h = Mul(x, half)", "y = Mul(h, p)"], "Gelu", None),
        (["d = Mul(x, inverse)", *GELU[1:], "q = Mul(p, x)", "y = Mul(half, q)"], "Gelu", None),
        ([*TANH, "h = Mul(half, x)", "y = Mul(h, p)"], "Gelu", "tanh"),
        (
            ["x2 = Mul(x, x)", "k = Mul(x2, x)", *TANH[1:], "h = Mul(half, x)", "y = Mul(h, p)"],
            "Gelu",
            "tanh",
        ),
        (["s0 = Sigmoid(x)", "y = Mul(x, s0)"], "QuickGelu", 1.0),
        (["z = Mul(alpha, x)", "s0 = Sigmoid(z)", "y = Mul(s0, x)"], "QuickGelu", 1.702),
    ],
)
def test_every_spelling(steps, op_type, attribute):
    before = activation(*steps)
    after = before.clone()
    apply(FuseActivation(), after)
    assert ops(after) == [op_type]
    if attribute is not None:
        name = "approximate" if op_type == "Gelu" else "alpha"
        assert node(after, op_type).attributes[name].value == pytest.approx(attribute)
    assert worst(before, after, X) < 2e-6


@pytest.mark.parametrize(
    ("steps", "op_type"),
    [
        ([*GELU, "q = Mul(x, p)", "y = Mul(q, half)"], "Gelu"),
        ([*TANH, "h = Mul(half, x)", "y = Mul(h, p)"], "FastGelu"),
    ],
)
def test_an_old_opset_gets_the_contrib_operator(steps, op_type):
    before = activation(*steps, opset=17)
    after = before.clone()
    apply(FuseActivation(), after)
    assert [(item.domain, item.op_type) for item in after.graph] == [("com.microsoft", op_type)]
    assert worst(before, after, X) < 2e-6


def test_a_bias_stays_in_front():
    steps = "z = Add(x, c)\n s0 = Sigmoid(z)\n y = Mul(z, s0)"
    model = graph(f"g (float[b,s,16] x) => (float[b,s,16] y) {{ {steps} }}", c=random(16))
    apply(FuseActivation(), model)
    assert ops(model) == ["Add", "QuickGelu"]


def test_another_function_is_left_alone_with_the_reason():
    model = activation("z = Mul(odd, x)", "s0 = Sigmoid(z)", "y = Mul(s0, x)")
    assert "no activation" in declined(FuseActivation(), model)


def test_soft_capping_and_gates_are_no_near_misses():
    assert declined(FuseActivation(), activation("d = Div(x, cap)", "t = Tanh(d)", "y = Mul(t, cap)")) == ""
    gate = graph("g (float[b,8] x, float[b,8] z) => (float[b,8] y) { s0 = Sigmoid(z)\n y = Mul(s0, x) }")
    assert declined(FuseActivation(), gate) == ""


def test_a_sigmoid_that_others_read_stays():
    model = graph("g (float[b,8] x) => (float[b,8] y, float[b,8] p) { p = Sigmoid(x)\n y = Mul(x, p) }")
    declined(FuseActivation(), model)


def test_our_own_export(tiny_export):
    model = tiny_export("llama", hidden_size=64)
    Canonicalize()(model)
    apply(FuseActivation(), model)
    assert ops(model).count("QuickGelu") == 5
    assert "Sigmoid" not in ops(model)
