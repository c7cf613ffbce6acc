"""Rotary embeddings become one node, and the proof that angles follow from positions is asked for."""

import numpy as np
import onnx_ir as ir
import pytest
from legacy_exports import decoder_feeds, legacy_decoder
from small_graphs import apply, declined, graph, node, ops, random, worst

from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.fuse_rotary import FuseRotary

FREQUENCY = (1e-2 ** (np.arange(4) / 4)).astype(np.float32)
ANGLES = """
  three = Unsqueeze(position_ids, last)
  p = Cast<to=1>(three)
  angle = Mul(p, frequency)
  both = Concat<axis=-1>(angle, angle)
  cos3 = Cos(both)
  sin3 = Sin(both)
"""
APPLY = """
  cos = Unsqueeze(cos3, heads)
  sin = Unsqueeze(sin3, heads)
  low = Slice(x, zero, four, last, step)
  high = Slice(x, four, end, last, step)
  minus = Neg(high)
  turned = Concat<axis=-1>(minus, low)
  a = Mul(x, cos)
  c = Mul(turned, sin)
  y = Add(a, c)
"""
CONSTANTS = {
    "frequency": FREQUENCY,
    "last": np.array([-1]),
    "heads": np.array([1]),
    "zero": np.array([0]),
    "four": np.array([4]),
    "end": np.array([2**63 - 1]),
    "step": np.array([1]),
}
FEEDS = {"x": random(2, 3, 5, 8), "position_ids": np.array([[0, 1, 2, 3, 4], [27, 9, 31, 11, 0]])}
HEAD = "g (float[b,3,s,8] x, int64[b,s] position_ids) => (float[b,3,s,8] y)"


def rotary(angles: str = ANGLES, applied: str = APPLY, head: str = HEAD, **extra: np.ndarray) -> ir.Model:
    body = f"{head} {{ {angles} {applied} }}"
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    arrays = {name: array for name, array in (CONSTANTS | extra).items() if name in words}
    model = graph(body, **arrays)
    model.metadata_props["onnxforge.context_length"] = "32"
    Canonicalize()(model)
    return model


def test_half_rotation():
    before = rotary()
    after = before.clone()
    apply(FuseRotary(), after)
    assert ops(after) == ["RotaryEmbedding"]
    fused = node(after, "RotaryEmbedding")
    assert fused.domain == "com.microsoft"
    assert [value.name for value in fused.inputs] == ["x", "position_ids", "rotary.cos", "rotary.sin"]
    assert fused.attributes["interleaved"].as_int() == 0
    assert tuple(fused.inputs[2].shape) == (32, 4)
    assert worst(before, after, FEEDS) < 1e-6


def test_the_attention_factor_is_in_the_tables():
    scaled = ANGLES.replace("cos3 = Cos(both)", "c0 = Cos(both)\n cos3 = Mul(c0, factor)")
    scaled = scaled.replace("sin3 = Sin(both)", "s0 = Sin(both)\n sin3 = Mul(s0, factor)")
    before = rotary(scaled, factor=np.array(1.25, np.float32))
    after = before.clone()
    apply(FuseRotary(), after)
    assert after.graph.initializers["rotary.cos"].const_value.numpy()[0, 0] == np.float32(1.25)
    assert worst(before, after, FEEDS) < 1e-6


def test_interleaved_rotation():
    pairs = """
      cos = Unsqueeze(cos3, heads)
      sin = Unsqueeze(sin3, heads)
      even = Slice(x, zero, end, last, two)
      odd = Slice(x, heads, end, last, two)
      minus = Neg(odd)
      m1 = Unsqueeze(minus, last)
      e1 = Unsqueeze(even, last)
      stacked = Concat<axis=-1>(m1, e1)
      shape = Shape(x)
      turned = Reshape(stacked, shape)
      a = Mul(x, cos)
      c = Mul(turned, sin)
      y = Add(a, c)
    """
    doubled = ANGLES.replace("both = Concat<axis=-1>(angle, angle)", "both = Gather<axis=2>(angle, twice)")
    before = rotary(doubled, pairs, two=np.array([2]), twice=np.array([0, 0, 1, 1, 2, 2, 3, 3]))
    after = before.clone()
    apply(FuseRotary(), after)
    assert ops(after) == ["RotaryEmbedding"]
    assert node(after, "RotaryEmbedding").attributes["interleaved"].as_int() == 1
    assert worst(before, after, FEEDS) < 1e-6


def test_a_pair_that_turns_by_two_angles_is_no_rotation():
    pairs = ANGLES.replace("Concat<axis=-1>(angle, angle)", "Gather<axis=2>(angle, mixed)")
    model = rotary(pairs, mixed=np.array([0, 0, 1, 1, 2, 2, 3, 3]))
    assert "different angles" in declined(FuseRotary(), model)


def test_partial_rotation():
    partial = APPLY.replace("(x,", "(part,") + "\n rest = Slice(full, eight, end, last, step)\n"
    partial = partial.replace("y = Add", "r = Add") + "y = Concat<axis=-1>(r, rest)"
    before = rotary(
        ANGLES + "part = Slice(full, zero, eight, last, step)\n",
        partial,
        "g (float[b,3,s,20] full, int64[b,s] position_ids) => (float[b,3,s,20] y)",
        eight=np.array([8]),
    )
    after = before.clone()
    apply(FuseRotary(), after)
    assert ops(after) == ["RotaryEmbedding"]
    fused = node(after, "RotaryEmbedding")
    assert fused.attributes["rotary_embedding_dim"].as_int() == 8
    assert fused.attributes["num_heads"].as_int() == 3
    feeds = {"full": random(2, 3, 5, 20), "position_ids": FEEDS["position_ids"]}
    assert worst(before, after, feeds) < 1e-6


def test_angles_that_follow_the_length_are_left_alone():
    dynamic = """
      top = ReduceMax<keepdims=1>(position_ids)
      long = Greater(top, limit)
      scaled = Where(long, slow, frequency)
    """ + ANGLES.replace("Mul(p, frequency)", "Mul(p, scaled)")
    model = rotary(dynamic, limit=np.array(20), slow=FREQUENCY / 2)
    assert "more than the position" in declined(FuseRotary(), model)


def test_angles_from_another_input_are_left_alone():
    head = "g (float[b,3,s,8] x, int64[b,s] position_ids, float[4] scale) => (float[b,3,s,8] y)"
    model = rotary(ANGLES.replace("Mul(p, frequency)", "Mul(p, scale)"), head=head)
    assert "'scale'" in declined(FuseRotary(), model)


def test_without_a_context_length_there_is_no_table():
    model = rotary()
    del model.metadata_props["onnxforge.context_length"]
    assert "max_positions" in declined(FuseRotary(), model)
    apply(FuseRotary(max_positions=40), model)
    assert tuple(model.graph.initializers["rotary.cos"].shape) == (40, 4)


def test_a_stored_table_is_looked_up():
    table = np.concatenate([np.outer(np.arange(32), FREQUENCY)] * 2, axis=1)
    looked_up = "cos3 = Gather(cos_table, position_ids)\n sin3 = Gather(sin_table, position_ids)\n"
    tables = {"cos_table": np.cos(table).astype(np.float32), "sin_table": np.sin(table).astype(np.float32)}
    before = rotary(looked_up, **tables)
    after = before.clone()
    apply(FuseRotary(), after)
    assert ops(after) == ["RotaryEmbedding"]
    assert worst(before, after, FEEDS) < 1e-6


def test_the_standard_operator_with_computed_angles_comes_to_the_same_form():
    standard = "cos3 = Cos(angle)\n sin3 = Sin(angle)\n y = RotaryEmbedding(x, cos3, sin3)"
    before = rotary(ANGLES.split("both")[0], standard)
    after = before.clone()
    apply(FuseRotary(), after)
    assert [(item.domain, item.op_type) for item in after.graph] == [("com.microsoft", "RotaryEmbedding")]
    assert worst(before, after, FEEDS) < 1e-6


@pytest.mark.parametrize(
    ("family", "tables"), [("llama", 2), ("gemma3_text", 4), ("phi", 2), ("gpt_neox", 2)]
)
def test_torchscript_decoders_share_their_tables(tiny_torch, family, tables):
    before = legacy_decoder(tiny_torch(family))
    after = before.clone()
    Canonicalize()(after)
    apply(FuseRotary(), after)
    assert ops(after).count("RotaryEmbedding") == 2 * 5
    assert not {"Cos", "Sin", "Neg"} & set(ops(after))
    assert sum(name.startswith("rotary.") for name in after.graph.initializers) == tables
    for batch, new, past in ((2, 4, 0), (2, 1, 7)):
        assert worst(before, after, decoder_feeds(before, batch, new, past)) < 2e-5
