"""Written-out attentions in the spellings of several exporters, cached, all of one meaning."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import Conversation, fill

from onnxforge.passes import notes
from onnxforge.passes.fuse_attention import FuseAttention

HEADS, GROUPS, SIZE = 4, 2, 8
SCALED = "s = Mul(p, scale)"
ADDED = """low = Constant<value_float=-1e9>() zero = Constant<value_float=0.0>()
           m = Where(seen, zero, low) a = Add(s, m)"""
PLAIN = "w = Softmax<axis=-1>(a)"
SPELLINGS = {
    "scale, add, softmax": (SCALED, ADDED, PLAIN),
    "divide": ("root = Sqrt(width) s = Div(p, root)", ADDED, PLAIN),
    "select": (
        SCALED,
        "never = Constant<value = float {-inf}>() a = Where(seen, s, never)",
        PLAIN,
    ),
    "select the other way": (
        SCALED,
        "hidden = Not(seen) never = Constant<value_float=-3.0e38>() a = Where(hidden, never, s)",
        PLAIN,
    ),
    "mask before the softmax in double": (
        SCALED,
        ADDED,
        "d = Cast<to=11>(a) e = Softmax(d) w = Cast<to=1>(e)",
    ),
    "guard against NaN": (
        SCALED,
        ADDED,
        "e = Softmax(a) bad = IsNaN(e) nothing = Constant<value_float=0.0>() w = Where(bad, nothing, e)",
    ),
}
CAPPED = "r = Mul(p, scale) cap = Constant<value_float=3.0>() i = Div(r, cap) j = Tanh(i) s = Mul(j, cap)"


def decoder(scale: str, mask: str, softmax: str, *, padding: bool = True) -> ir.Model:
    seen = (
        "token_row = Cast<to=9>(attention_mask) token = Unsqueeze(token_row, axes) seen = And(causal, token)"
    )
    mask_input = "int64[B, T] attention_mask," if padding else ""
    cache = f"float[B, {GROUPS}, P, {SIZE}]"
    present = f"float[B, {GROUPS}, T, {SIZE}]"
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (int64[B, S] input_ids, {mask_input} {cache} pastk, {cache} pastv)
        => (float[B, S, {HEADS * SIZE}] logits, {present} presentk, {present} presentv) {{
          x = Gather(E, input_ids)
          one = Constant<value_ints=[1]>() two = Constant<value_ints=[2]>()
          axes = Constant<value_ints=[1, 2]>()
          start = Constant<value_int=0>() step = Constant<value_int=1>()
          scale = Constant<value_float={SIZE**-0.5}>() width = Constant<value_float={float(SIZE)}>()
          many = Constant<value_ints=[0, 0, {HEADS}, {SIZE}]>()
          few = Constant<value_ints=[0, 0, {GROUPS}, {SIZE}]>()
          q0 = MatMul(x, Wq) q1 = Reshape(q0, many) q = Transpose<perm=[0, 2, 1, 3]>(q1)
          k0 = MatMul(x, Wk) k1 = Reshape(k0, few) k2 = Transpose<perm=[0, 2, 1, 3]>(k1)
          v0 = MatMul(x, Wv) v1 = Reshape(v0, few) v2 = Transpose<perm=[0, 2, 1, 3]>(v1)
          presentk = Concat<axis=2>(pastk, k2)
          presentv = Concat<axis=-2>(pastv, v2)
          ks = Shape(presentk) kt = Gather(ks, two) T0 = Squeeze(kt)
          xs = Shape(x) xt = Gather(xs, one) S0 = Squeeze(xt) P0 = Sub(T0, S0)
          key = Range(start, T0, step) row = Range(P0, T0, step) query = Unsqueeze(row, one)
          causal = LessOrEqual(key, query)
          {seen if padding else "seen = Identity(causal)"}
          wide = Constant<value_ints=[1, 1, {HEADS // GROUPS}, 1, 1]>()
          k5 = Unsqueeze(presentk, two) k6 = Expand(k5, wide)
          h = Constant<value_ints=[0, {HEADS}, -1, {SIZE}]>()
          k = Reshape(k6, h) v5 = Unsqueeze(presentv, two) v6 = Expand(v5, wide) v = Reshape(v6, h)
          kT = Transpose<perm=[0, 1, 3, 2]>(k)
          p = MatMul(q, kT)
          {scale} {mask} {softmax}
          o = MatMul(w, v) o1 = Transpose<perm=[0, 2, 1, 3]>(o)
          flat = Constant<value_ints=[0, 0, {HEADS * SIZE}]>() logits = Reshape(o1, flat)
        }}"""
    )
    given = np.random.default_rng(1)
    shapes = {"E": (40, 16), "Wq": (16, HEADS * SIZE), "Wk": (16, GROUPS * SIZE), "Wv": (16, GROUPS * SIZE)}
    fill(
        model.graph, {name: given.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    )
    names = {"pastk": "past_key_values.0.key", "pastv": "past_key_values.0.value"}
    names |= {"presentk": "present.0.key", "presentv": "present.0.value"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name, value.name)
    return model


def fused(model: ir.Model) -> tuple[ir.Model, ir.Node]:
    after = model.clone()
    with notes.listen() as said:
        assert FuseAttention()(after).modified, [note.reason for note in said]
    assert not any(node.op_type in ("Softmax", "Concat") for node in after.graph)
    return after, next(node for node in after.graph if node.op_type == "GroupQueryAttention")


def assert_same(before: ir.Model, after: ir.Model, *, ragged: bool) -> None:
    for script in ([(5,), (1,), (3,)], [(5, 2), (1, 1)] if ragged else [(4, 4), (1, 1)]):
        rng = np.random.default_rng(0)
        rows = len(script[0])
        together, alone = Conversation(after, rows), [Conversation(before, 1) for _ in range(rows)]
        for lengths in script:
            said = [rng.integers(0, 40, length).tolist() for length in lengths]
            for got, speaker, row in zip(together.say(said), alone, said, strict=True):
                np.testing.assert_allclose(got, speaker.say([row])[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_means_the_same(spelling: tuple[str, str, str]):
    before = decoder(*spelling)
    after, node = fused(before)
    assert node.attributes.get_float("scale") == pytest.approx(SIZE**-0.5, rel=1e-6)
    assert_same(before, after, ragged=True)


def test_soft_cap():
    before = decoder(CAPPED, ADDED, PLAIN)
    after, node = fused(before)
    assert node.attributes.get_float("softcap") == 3.0
    assert_same(before, after, ragged=True)


def test_a_graph_without_an_attention_mask_counts_its_own_slots():
    before = decoder(SCALED, ADDED, PLAIN, padding=False)
    after, _ = fused(before)
    assert_same(before, after, ragged=False)


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        (("r = Mul(p, scale) s = Mul(r, r)", ADDED, PLAIN), None),
        ((SCALED, ADDED, "w = Softmax<axis=2>(a)"), "does not run over the keys"),
        (("n = Cast<to=1>(S0) s = Div(p, n)", ADDED, PLAIN), "depends on a length"),
        (("c = Tanh(p) s = Add(c, p)", ADDED, PLAIN), None),
        ((SCALED, "a = Add(s, s)", PLAIN), None),
    ],
    ids=["squared", "wrong axis", "scaled by length", "another function", "no mask"],
)
def test_what_only_looks_like_attention_stays(parts: tuple[str, str, str], reason: str | None):
    model = decoder(*parts)
    before = [node.op_type for node in model.graph]
    with notes.listen() as said:
        assert not FuseAttention()(model).modified
    assert [node.op_type for node in model.graph] == before
    if reason is not None:
        assert reason in said[0].reason
