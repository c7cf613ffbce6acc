"""The lookup in a quantized embedding as one operator, over the bytes that the tied head reads."""

import numpy as np
import pytest
from small_graphs import apply, declined, graph, node, ops, random, worst

from onnxforge.passes.fuse_quantized_gather import FuseQuantizedGather
from onnxforge.passes.quantize_weights import QuantizeWeights

TIED = """g (int64[b,s] ids, float[b,s,96] x) => (float[b,s,96] e, float[b,s,64] l) {
  e = Gather(table, ids)
  t = Transpose<perm=[1,0]>(table)
  l = MatMul(x, t)
}"""
FEEDS = {"ids": np.array([[1, 5, 63], [0, 2, -1]]), "x": random(2, 3, 96, seed=1)}


def quantized(bits: int, **options):
    model = graph(TIED, table=random(64, 96))
    QuantizeWeights(bits=bits, min_elements=1, accuracy_level=0, **options)(model)
    return model


@pytest.mark.parametrize("bits", [8, 4])
def test_the_lookup_is_one_operator(bits: int):
    model = quantized(bits)
    apply(FuseQuantizedGather(), model)
    assert sorted(ops(model)) == ["GatherBlockQuantized", "MatMulNBits", "Reshape", "Unsqueeze"]
    fused = node(model, "GatherBlockQuantized")
    assert fused.inputs[0] is node(model, "MatMulNBits").inputs[1], "one table for head and lookup"
    assert {name: item.as_int() for name, item in fused.attributes.items()} == {
        "bits": bits,
        "block_size": 32,
        "gather_axis": 0,
        "quantize_axis": 2,
    }
    assert worst(quantized(bits), model, FEEDS) == 0


def test_blocks_with_their_own_zero_points_are_left_alone():
    assert "own zero point" in declined(FuseQuantizedGather(), quantized(8, symmetric=False))


def test_another_product_is_no_lookup():
    body = "g (float[b,4] x, float[b,4] y) => (float[b,4] z) { z = Mul(x, y) }"
    assert declined(FuseQuantizedGather(), graph(body)) == ""
