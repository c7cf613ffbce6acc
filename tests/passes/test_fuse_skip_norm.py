"""Residual addition and norm in one node, with the sum handed on."""

import pytest
from small_graphs import apply, declined, graph, node, ops, random, worst

from onnxforge.passes.fuse_skip_norm import FuseSkipNorm

FEEDS = {"x": random(2, 3, 16), "z": random(2, 3, 16, seed=1)}
HEAD = "g (float[b,s,16] x, float[b,s,16] z) => (float[b,s,16] y, float[b,s,16] t)"
SHAPED = "<float[b,s,16] r, float[b,s,16] n, float[b,s,16] xb>"
RMS, LAYER = "SkipSimplifiedLayerNormalization", "SkipLayerNormalization"
NORMS = {
    "rms": ("n = RMSNormalization<axis=-1, epsilon=1e-6>(r, w)", RMS, {}),
    "layer": ("n = LayerNormalization<axis=-1>(r, w, c)", LAYER, {"c": random(16, seed=3)}),
    "layer without bias": ("n = LayerNormalization<axis=-1>(r, w)", LAYER, {}),
}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_the_sum_is_the_fourth_output(norm, bias):
    step, fused, extra = NORMS[norm]
    if bias:
        first, extra = "xb = Add(x, v)\n r = Add(xb, z)", extra | {"v": random(16, seed=4)}
    else:
        first = "r = Add(x, z)"
    before = graph(
        f"{HEAD} {SHAPED} {{ {first}\n {step}\n y = Neg(n)\n t = Relu(r) }}", w=random(16, seed=2), **extra
    )
    after = before.clone()
    apply(FuseSkipNorm(), after)
    assert sorted(ops(after)) == sorted([fused, "Neg", "Relu"])
    assert len(node(after, fused).outputs) == 4
    assert worst(before, after, FEEDS) < 2e-6


def test_a_sum_that_is_an_output_keeps_its_name():
    before = graph(
        f"{HEAD} {{ t = Add(x, z)\n n = RMSNormalization<axis=-1>(t, w)\n y = Neg(n) }}", w=random(16, seed=2)
    )
    after = before.clone()
    apply(FuseSkipNorm(), after)
    assert [value.name for value in after.graph.outputs] == ["y", "t"]
    assert worst(before, after, FEEDS) < 2e-6


@pytest.mark.parametrize("other", ["float[1,s,16]", "float[s,16]", "float[16]"])
def test_a_sum_that_broadcasts_is_left_alone(other):
    head = f"g (float[b,s,16] x, {other} z) => (float[b,s,16] y)"
    model = graph(f"{head} {{ r = Add(x, z)\n y = RMSNormalization(r, w) }}", w=random(16))
    assert "same shape" in declined(FuseSkipNorm(), model)


def test_a_head_norm_of_rank_4_is_left_alone():
    head = "g (float[b,2,s,16] x, float[b,2,s,16] z) => (float[b,2,s,16] y)"
    model = graph(f"{head} {{ r = Add(x, z)\n y = RMSNormalization(r, w) }}", w=random(16))
    assert "rank 4" in declined(FuseSkipNorm(), model)


def test_a_norm_over_two_axes_is_left_alone():
    body = f"{HEAD} {{ r = Add(x, z)\n y = RMSNormalization<axis=1>(r, w)\n t = Neg(r) }}"
    assert "last axis" in declined(FuseSkipNorm(), graph(body, w=random(16)))
