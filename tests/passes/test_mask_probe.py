"""What a mask means, for masks written in many ways; and the masks that must not pass for causal."""

import onnx_ir as ir
import pytest

from onnxforge.passes.attention_match import OperatorScores, bias
from onnxforge.passes.mask_probe import Causal, NoMask, Padding, Unknown, mask_meaning
from onnxforge.passes.subgraph_probe import Bench

SLOTS = """
  mask_shape = Shape(attention_mask)
  one = Constant<value_ints=[1]>()
  zero = Constant<value_ints=[0]>()
  T1 = Gather(mask_shape, one)
  ids_shape = Shape(input_ids)
  S1 = Gather(ids_shape, one)
  T = Squeeze(T1)
  S = Squeeze(S1)
  P = Sub(T, S)
  start = Constant<value_int=0>()
  step = Constant<value_int=1>()
  key = Range(start, T, step)
  query_row = Range(P, T, step)
  query = Unsqueeze(query_row, one)
  causal = LessOrEqual(key, query)
  token_row = Cast<to=9>(attention_mask)
  axes = Constant<value_ints=[1, 2]>()
  token = Unsqueeze(token_row, axes)
"""
"""key [T], query [S, 1], causal [S, T], token [B, 1, 1, T]."""


def meaning(body: str, *, cached: bool = True):
    """The meaning of the value named ``mask`` that ``body`` computes from SLOTS."""
    past = ", float[B, 2, P0, 8] past_key" if cached else ""
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> '
        f"g (int64[B, S0] input_ids, int64[B, T0] attention_mask{past}) => (float[b, h, s, t] mask) "
        f"{{ {SLOTS} {body} }}"
    ).graph
    mask = graph.outputs[0]
    scores = OperatorScores(mask, 1.0, 0.0)
    return mask_meaning(Bench(graph), lambda probe: bias(scores, probe), (mask,), cached=cached)


def test_boolean_causal_mask_with_padding():
    assert meaning("mask = And(causal, token)") == Causal(None, padding=True)


def test_causal_mask_that_ignores_padding():
    assert meaning("mask = Identity(causal)") == Causal(None, padding=False)


def test_additive_mask_of_an_older_export():
    body = """
      keep = And(causal, token)
      none = Constant<value_float=0.0>()
      least = Constant<value_float=-3.4028234663852886e38>()
      mask = Where(keep, none, least)
    """
    assert meaning(body) == Causal(None, padding=True)


def test_two_additive_masks_that_overflow_together():
    body = """
      none = Constant<value_float=0.0>()
      least = Constant<value_float=-3.4028234663852886e38>()
      a = Where(causal, none, least)
      b = Where(token, none, least)
      mask = Add(a, b)
    """
    assert meaning(body) == Causal(None, padding=True)


def test_lower_triangle_of_the_slice_of_a_square():
    body = """
      ends = Concat<axis=0>(T1, T1)
      ones = ConstantOfShape<value = int64[1] {1}>(ends)
      square = Trilu<upper=0>(ones)
      P1 = Unsqueeze(P, zero)
      rows = Slice(square, P1, T1, zero)
      lower = Cast<to=9>(rows)
      mask = And(lower, token)
    """
    assert meaning(body) == Causal(None, padding=True)


@pytest.mark.parametrize("window", [1, 3, 100, 4096, 50000])
def test_windows_near_and_far(window: int):
    body = f"""
      width = Constant<value_int={window}>()
      oldest = Sub(query, width)
      near = Greater(key, oldest)
      both = And(causal, near)
      mask = And(both, token)
    """
    assert meaning(body) == Causal(window, padding=True)


def test_padding_only():
    assert meaning("mask = Identity(token)", cached=False) == Padding()


def test_padding_spread_over_the_queries():
    body = """
      wide = Concat<axis=0>(one, one, T1, T1)
      mask = Expand(token, wide)
    """
    assert meaning(body, cached=False) == Padding()


def test_no_mask_at_all():
    body = """
      square = Concat<axis=0>(S1, T1)
      mask = ConstantOfShape<value = float[1] {0.0}>(square)
    """
    assert meaning(body, cached=False) == NoMask()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        # A prefix of three slots that everybody sees.
        (
            "three = Constant<value_int=3>() early = Less(key, three) wide = Or(causal, early) "
            "mask = And(wide, token)",
            "neither causal",
        ),
        ("strict = Less(key, query) mask = And(strict, token)", "neither causal"),
        ("ahead = Sub(query, step) later = Less(ahead, key) mask = And(later, token)", "neither causal"),
        # Slopes of distance: a bias, not a mask.
        (
            "far = Sub(key, query) slope = Cast<to=1>(far) quarter = Constant<value_float=0.25>() "
            "added = Mul(slope, quarter) none = Constant<value_float=-1e9>() "
            "mask = Where(causal, added, none)",
            "adds a bias",
        ),
        (
            "sep = Constant<value_int=5>() special = Equal(input_ids, sep) seen = Unsqueeze(special, axes) "
            "wide = Or(causal, seen) mask = And(wide, token)",
            "contents of the graph input 'input_ids'",
        ),
        # Weak enough to leave a trace in the softmax.
        (
            "none = Constant<value_float=0.0>() weak = Constant<value_float=-5.0>() "
            "mask = Where(causal, none, weak)",
            "adds a bias",
        ),
    ],
    ids=["prefix", "strict", "anti-causal", "alibi", "token ids", "weak"],
)
def test_what_must_not_pass_for_causal(body: str, reason: str):
    found = meaning(body)
    assert isinstance(found, Unknown)
    assert reason in found.reason


def test_a_band_around_each_token_is_no_padding():
    body = """
      width = Constant<value_int=64>()
      apart = Sub(query, key)
      distance = Abs(apart)
      near = LessOrEqual(distance, width)
      mask = And(near, token)
    """
    assert isinstance(meaning(body, cached=False), Unknown)


def test_chance_is_no_mask():
    found = meaning("table = RandomUniform<shape=[70000]>() mask = Gather(table, key)")
    assert isinstance(found, Unknown)
    assert "RandomUniform" in found.reason
