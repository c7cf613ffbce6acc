"""Heads are traced through what exporters write, and a chain that scrambles them is refused."""

import onnx_ir as ir
import pytest

from onnxforge.passes.attention_heads import Layout, Operand, merged, sources
from onnxforge.passes.subgraph_probe import Bench, Sizes


def trace(body: str, *, heads: int, transposed: bool = False):
    """The farthest source of ``y``, whose heads are made of x [B, S, 32] by ``body``."""
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (int64[B, S] input_ids, float[B, S, 32] x) '
        f"=> (float[a, b, c, d] y) {{ {body} }}"
    ).graph
    bench = Bench(graph)
    probes = (bench.probe(Sizes(3, 13, 0)), bench.probe(Sizes(2, 5, 0)))
    found = next(sources(probes, Operand(graph.outputs[0], heads, transposed)), None)
    return found and (found.value.name, found.layout, found.heads, found.head_size, found.factor)


SPLIT = "four = Constant<value_ints=[0, 0, 4, 8]>() r = Reshape(x, four)"
TWO = "two = Constant<value_ints=[0, 0, 2, 16]>() r = Reshape(x, two) k = Transpose<perm=[0, 2, 1, 3]>(r)"


def test_split_and_transpose():
    assert trace(f"{SPLIT} y = Transpose<perm=[0, 2, 1, 3]>(r)", heads=4) == ("x", Layout.FLAT, 4, 8, 1.0)


def test_keys_transposed_in_one_go():
    body = f"{SPLIT} y = Transpose<perm=[0, 2, 3, 1]>(r)"
    assert trace(body, heads=4, transposed=True) == ("x", Layout.FLAT, 4, 8, 1.0)


def test_keys_transposed_through_three_dimensions():
    body = f"""{SPLIT} t = Transpose<perm=[0, 2, 1, 3]>(r) s = Shape(t)
      i = Constant<value_ints=[2, 3]>() tail = Gather(s, i) any = Constant<value_ints=[-1]>()
      flat = Concat<axis=0>(any, tail) three = Reshape(t, flat) turned = Transpose<perm=[0, 2, 1]>(three)
      j = Constant<value_ints=[0, 1, 3, 2]>() back = Gather(s, j) y = Reshape(turned, back)"""
    assert trace(body, heads=4, transposed=True) == ("x", Layout.FLAT, 4, 8, 1.0)


def test_a_scale_on_the_way_is_a_factor():
    body = f"{SPLIT} t = Transpose<perm=[0, 2, 1, 3]>(r) c = Constant<value_float=0.25>() y = Mul(t, c)"
    assert trace(body, heads=4) == ("x", Layout.FLAT, 4, 8, 0.25)


def test_a_scale_that_depends_on_a_length_is_none():
    body = f"""{SPLIT} t = Transpose<perm=[0, 2, 1, 3]>(r) s = Shape(input_ids) one = Constant<value_int=1>()
      n = Gather(s, one) f = Cast<to=1>(n) y = Div(t, f)"""
    assert trace(body, heads=4)[0] == "y"


def test_groups_repeated_side_by_side():
    body = f"""{TWO} u = Constant<value_ints=[2]>() w = Unsqueeze(k, u)
      five = Constant<value_ints=[1, 1, 3, 1, 1]>() e = Expand(w, five) s = Shape(k)
      i = Constant<value_ints=[0]>() b = Gather(s, i) j = Constant<value_ints=[2]>() l = Gather(s, j)
      six = Constant<value_ints=[6]>() d = Constant<value_ints=[16]>() shape = Concat<axis=0>(b, six, l, d)
      y = Reshape(e, shape)"""
    assert trace(body, heads=6) == ("x", Layout.FLAT, 2, 16, 1.0)


def test_groups_repeated_end_to_end_are_another_arrangement():
    body = f"{TWO} times = Constant<value_ints=[1, 3, 1, 1]>() y = Tile(k, times)"
    assert trace(body, heads=6) == ("y", Layout.HEADS, 6, 16, 1.0)


def test_heads_cut_the_wrong_way_are_refused():
    body = "cut = Constant<value_ints=[0, 0, 8, 4]>() r = Reshape(x, cut) y = Transpose<perm=[0, 3, 1, 2]>(r)"
    assert trace(body, heads=4)[0] == "y"


@pytest.mark.parametrize(
    ("perm", "found"),
    [("[0, 2, 1, 3]", "y"), ("[2, 0, 1, 3]", None)],
    ids=["merged", "batch and length swapped"],
)
def test_merging_heads_downstream(perm: str, found: str | None):
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (int64[B, S] input_ids, float[B, S, 32] x) '
        f"=> (float[a, b, c] y) {{ {SPLIT} out = Transpose<perm=[0, 2, 1, 3]>(r) "
        f"t = Transpose<perm={perm}>(out) "
        "flat = Constant<value_ints=[0, 0, 32]>() y = Reshape(t, flat) }"
    ).graph
    out = next(value for node in graph for value in node.outputs if value.name == "out")
    value = merged(Bench(graph).probe(Sizes(3, 13, 0)), out, 4)
    assert (value and value.name) == found
