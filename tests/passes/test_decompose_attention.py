"""The standard Attention operator, written out."""

import numpy as np
import pytest
from small_graphs import apply, declined, graph, ops, random, worst

from onnxforge.passes.decompose_attention import NEVER, DecomposeAttention

HEADS = "float[2,4,5,8] q, float[2,4,5,8] k, float[2,4,5,8] v"
QKV = {name: random(2, 4, 5, 8, seed=seed) for seed, name in enumerate("qkv")}


def one(attributes: str = "", extra: str = "", mask: str = "", inputs: str = HEADS):
    call = f"y = Attention{attributes}(q, k, v{mask})"
    return graph(f"g ({inputs}{extra}) => (float[2,4,5,8] y) {{ {call} }}")


def test_without_a_mask():
    model = one("<scale=0.25>")
    before = model.clone()
    apply(DecomposeAttention(), model)
    assert ops(model) == ["Mul", "Transpose", "MatMul", "Softmax", "MatMul"]
    assert worst(before, model, QKV) < 1e-6


def test_the_scale_is_that_of_the_head_where_none_is_said():
    model = one()
    before = model.clone()
    apply(DecomposeAttention(), model)
    assert worst(before, model, QKV) < 1e-6


@pytest.mark.parametrize("shape", ["2,1,5,5", "5,5"])
def test_a_boolean_mask_becomes_numbers_once(shape):
    body = f"""g ({HEADS}, bool[{shape}] m) => (float[2,4,5,8] y, float[2,4,5,8] z) {{
      y = Attention(q, k, v, m)
      z = Attention(v, k, q, m)
    }}"""
    model = graph(body)
    mask = np.random.default_rng(0).random([int(d) for d in shape.split(",")]) < 0.7
    mask[..., 0] = True
    before = model.clone()
    apply(DecomposeAttention(), model)
    assert ops(model).count("Where") == 1
    assert worst(before, model, QKV | {"m": mask}) < 1e-6


def test_a_mask_of_numbers_is_added():
    model = one(extra=", float[2,4,5,5] m", mask=", m")
    before = model.clone()
    apply(DecomposeAttention(), model)
    assert ops(model) == ["Mul", "Transpose", "MatMul", "Add", "Softmax", "MatMul"]
    assert worst(before, model, QKV | {"m": random(2, 4, 5, 5, seed=9)}) < 1e-6


def test_a_hidden_key_weighs_nothing_and_stays_inside_float16():
    assert np.exp(np.float32(NEVER) + 300) == 0
    assert np.isfinite(np.float16(NEVER) + np.float16(-20000))


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (one("<softcap=5.0>"), "soft-capped"),
        (one("<is_causal=1>"), "causal by attribute"),
        (
            one(extra=", float[2,4,3,8] pk, float[2,4,3,8] pv", mask=", , pk, pv"),
            "it has a cache",
        ),
        (
            one(inputs="float[2,4,5,8] q, float[2,2,5,8] k, float[2,2,5,8] v"),
            "several queries share a key",
        ),
        (
            graph(
                "g (float[2,5,32] q, float[2,5,32] k, float[2,5,32] v) => (float[2,5,32] y) "
                "{ y = Attention<q_num_heads=4, kv_num_heads=4>(q, k, v) }"
            ),
            "not known to be [batch, heads, length, size]",
        ),
    ],
    ids=["softcap", "causal", "cache", "grouped", "flat"],
)
def test_more_than_the_plain_form_stays(model, says):
    assert says in declined(DecomposeAttention(), model)
