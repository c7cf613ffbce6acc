"""One product for query, key and value, from three products or from one that was split."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import Conversation, fill

from onnxforge.passes import notes
from onnxforge.passes.pack_qkv import PackQkv

HIDDEN, HEADS, GROUPS, SIZE = 24, 4, 2, 16
WIDTH = (HEADS + 2 * GROUPS) * SIZE
THREE = "q = MatMul(x, Wq) k = MatMul(x, Wk) v = MatMul(x, Wv)"
BIASED = """q0 = MatMul(x, Wq) q = Add(q0, bq) k0 = MatMul(x, Wk) k = Add(bk, k0)
            v0 = MatMul(x, Wv) v = Add(v0, bv)"""
SPLIT = "p = MatMul(x, W) q, k, v = Split<axis=2>(p, parts)"
BY_GROUP = f"""p = MatMul(x, W)
            rows = Constant<value_ints=[0, 0, {GROUPS}, {WIDTH // GROUPS}]>() r = Reshape(p, rows)
            q4, k4, v4 = Split<axis=3>(r, mine) qf = Constant<value_ints=[0, 0, {HEADS * SIZE}]>()
            kf = Constant<value_ints=[0, 0, {GROUPS * SIZE}]>()
            q = Reshape(q4, qf) k = Reshape(k4, kf) v = Reshape(v4, kf)"""
SHAPES = {
    "E": (50, HIDDEN),
    "Wq": (HIDDEN, HEADS * SIZE),
    "Wk": (HIDDEN, GROUPS * SIZE),
    "Wv": (HIDDEN, GROUPS * SIZE),
    "W": (HIDDEN, WIDTH),
    "bq": (HEADS * SIZE,),
    "bk": (GROUPS * SIZE,),
    "bv": (GROUPS * SIZE,),
}


def attention(projections: str) -> ir.Model:
    """A decoder of one attention: logits are its output."""
    cache = f"float[B, {GROUPS}, P, {SIZE}]"
    present = f"float[B, {GROUPS}, T, {SIZE}]"
    given = np.random.default_rng(0)
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (int64[B, S] input_ids, int64[B, T] attention_mask, {cache} pastk, {cache} pastv)
        => (float[B, S, {HEADS * SIZE}] logits, {present} presentk, {present} presentv) {{
          x = Gather(E, input_ids)
          {projections}
          one = Constant<value_ints=[1]>()
          n = ReduceSum<keepdims=0>(attention_mask, one)
          l = Sub(n, one)
          last = Cast<to=6>(l)
          shape = Shape<start=1>(attention_mask)
          t = Squeeze(shape)
          total = Cast<to=6>(t)
          logits, presentk, presentv = com.microsoft.GroupQueryAttention
            <num_heads={HEADS}, kv_num_heads={GROUPS}> (q, k, v, pastk, pastv, last, total)
        }}"""
    )
    arrays = {name: given.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    arrays["parts"] = np.array([HEADS * SIZE, GROUPS * SIZE, GROUPS * SIZE], np.int64)
    arrays["mine"] = arrays["parts"] // GROUPS
    fill(model.graph, arrays)
    names = {"pastk": "past_key_values.0.key", "pastv": "past_key_values.0.value"}
    names |= {"presentk": "present.0.key", "presentv": "present.0.value"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name, value.name)
    return model


def packed(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "GroupQueryAttention")


def same(before: ir.Model, after: ir.Model) -> bool:
    one, two = Conversation(before, 1), Conversation(after, 1)
    steps = ([[3, 7, 1, 9]], [[5]], [[2, 8]])
    return all(np.allclose(one.say(step)[0], two.say(step)[0], atol=1e-5) for step in steps)


@pytest.mark.parametrize(
    "projections", [THREE, BIASED, SPLIT, BY_GROUP], ids=["three", "biased", "split", "by group"]
)
def test_packs_and_computes_the_same(projections: str):
    before, after = attention(projections), attention(projections)
    assert PackQkv()(after).modified
    node = packed(after)
    assert node.inputs[1] is None
    assert node.inputs[2] is None
    assert sum(item.op_type == "MatMul" for item in after.graph) == 1
    assert not any(item.op_type in ("Split", "Reshape") for item in after.graph)
    assert same(before, after)
    assert not PackQkv()(after).modified


def test_weights_are_joined_only_when_they_are_written():
    model = attention(THREE)
    for name in ("Wq", "Wk", "Wv"):
        value = model.graph.initializers[name]
        value.const_value = ir.LazyTensor(
            lambda: pytest.fail("a weight was read"), dtype=ir.DataType.FLOAT, shape=value.shape, name=name
        )
    assert PackQkv()(model).modified


@pytest.mark.parametrize(
    ("projections", "reason"),
    [
        (THREE.replace("(x, Wk)", "(other, Wk)") + " ", "not computed from one value"),
        (BIASED.replace("v0 = MatMul(x, Wv) v = Add(v0, bv)", "v = MatMul(x, Wv)"), "only some"),
        (
            THREE.replace("q = MatMul(x, Wq)", "q0 = MatMul(x, Wq) q = Tanh(q0)"),
            "straight from a linear layer",
        ),
        (THREE + " spy = Identity(k) seen = Identity(spy)", "used elsewhere"),
    ],
    ids=["two inputs", "half biased", "something between", "used elsewhere"],
)
def test_near_misses(projections: str, reason: str):
    if "other" in projections:
        projections = "other = Neg(x) " + projections
    model = attention(projections)
    if "spy" in projections:
        seen = next(value for node in model.graph for value in node.outputs if value.name == "seen")
        seen.type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(seen)
    with notes.listen() as said:
        assert not PackQkv()(model).modified
    assert [note.kind for note in said] == [notes.NoteKind.NEAR_MISS]
    assert reason in said[0].reason
