"""Weights that come quantized stay as they are: code for code, whatever joins or transposes them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType, quants
from small_graphs import apply, declined, graph, ops, random, run

from onnxforge.models import stored_blocks as promised
from onnxforge.models.gguf_codes import coded
from onnxforge.passes import notes, stored_blocks
from onnxforge.passes.canonicalize import Canonicalize
from onnxforge.passes.pack_qkv import PackQkv
from onnxforge.passes.quantize_weights import QuantizeWeights

TYPES = ("Q4_0", "Q4_1", "Q8_0")
KEEP = QuantizeWeights(keep_blocks=True, bits=8, block_size=64, accuracy_level=0, min_elements=0)
LINEAR = """g (float[b,s,96] x) => (float[b,s,64] y) {
  t = Transpose<perm=[1,0]>(w)
  y = MatMul(x, t)
}"""


def stored(rows: np.ndarray, type_name: str) -> tuple[ir.LazyTensor, np.ndarray]:
    """A lazy float tensor that carries its blocks, as a GGUF source makes it, and its values."""
    kind = GGMLQuantizationType[type_name]
    raw = quants.quantize(rows, kind)
    values = quants.dequantize(raw, kind)
    tensor = ir.LazyTensor(
        lambda: ir.tensor(values), dtype=ir.DataType.FLOAT, shape=ir.Shape(values.shape), name="w"
    )
    tensor.meta[stored_blocks.STORED_BLOCKS] = coded(type_name, lambda: raw)
    return tensor, values


def awkward(count: int, width: int) -> np.ndarray:
    """Rows with blocks of zeros, of one value, of one sign, with an outlier, and very small ones."""
    rows = random(count, width, scale=0.05)
    rows[0, :32] = 0
    rows[1, :32] = 0.37
    rows[2] = np.abs(rows[2]) + 1
    rows[3, 7] = 9
    rows[4] *= 1e-4
    return rows


def test_both_sides_agree_on_the_keys():
    """Sources do not import passes, so each writes the keys down."""
    for name in ("STORED_BLOCKS", "STORED_BLOCKS_TURNED", "MIDDLE", "ZERO", "MINIMUM"):
        assert getattr(promised, name) == getattr(stored_blocks, name)


@pytest.mark.parametrize("type_name", TYPES)
def test_codes_decode_to_what_gguf_says(type_name):
    tensor, values = stored(awkward(64, 96), type_name)
    blocks = stored_blocks.stored_blocks(tensor, transposed=False)
    bits, block, origin = blocks.form
    offset = origin == stored_blocks.MINIMUM
    codes, steps, minimums = blocks.read()
    assert codes.dtype == np.uint8
    assert codes.max() < 1 << bits
    grid = codes.reshape(64, -1, block).astype(np.float32)
    grid = grid if offset else grid - np.float32(1 << (bits - 1))
    decoded = grid * steps[..., None] + (minimums[..., None] if offset else 0)
    np.testing.assert_array_equal(decoded.reshape(values.shape), values)


@pytest.mark.parametrize("type_name", TYPES)
def test_a_kept_matrix_multiplies_like_its_source_bit_for_bit(type_name):
    tensor, values = stored(awkward(64, 96), type_name)
    model = graph(LINEAR, w=tensor)
    Canonicalize()(model)
    apply(KEEP, model)
    assert "MatMulNBits" in ops(model)
    (got,) = run(model, {"x": np.eye(96, dtype=np.float32)[None]})
    np.testing.assert_array_equal(got[0], values.T)


@pytest.mark.parametrize("type_name", TYPES)
def test_a_kept_embedding_is_looked_up_bit_for_bit_and_shared_with_the_head(type_name):
    tensor, values = stored(awkward(64, 96), type_name)
    body = """g (int64[b,s] ids, float[b,s,96] x) => (float[b,s,96] e, float[b,s,64] l) {
      e = Gather(table, ids)
      t = Transpose<perm=[1,0]>(table)
      l = MatMul(x, t)
    }"""
    model = graph(body, table=tensor)
    apply(QuantizeWeights(keep_blocks=True, accuracy_level=0), model)
    byte = [
        v.name for v in model.graph.initializers.values() if v.dtype == ir.DataType.UINT8 and v.shape.rank()
    ]
    assert len(byte) == 1, "codes are stored once"
    eye = np.eye(96, dtype=np.float32)[None, :64]
    looked_up, logits = run(model, {"ids": np.arange(64)[None], "x": eye})
    np.testing.assert_array_equal(looked_up[0], values)
    np.testing.assert_array_equal(logits[0], values.T[:64])


@pytest.mark.parametrize("type_name", TYPES)
def test_int8_kernels_multiply_kept_blocks_closely(type_name):
    tensor, values = stored(awkward(64, 96), type_name)
    model = graph(LINEAR, w=tensor)
    Canonicalize()(model)
    apply(QuantizeWeights(keep_blocks=True, min_elements=0), model)
    x = random(2, 5, 96, seed=1)
    (got,) = run(model, {"x": x})
    assert np.linalg.norm(got - x @ values.T) < 0.01 * np.linalg.norm(x @ values.T)


def test_sums_over_blocks_are_computed_once_for_all_that_read_them():
    one, two = stored(awkward(64, 96), "Q4_1")[0], stored(random(64, 96, seed=3), "Q4_1")[0]
    body = """g (float[b,s,96] x) => (float[b,s,64] y) {
      t = Transpose<perm=[1,0]>(one)
      u = Transpose<perm=[1,0]>(two)
      a = MatMul(x, t)
      b = MatMul(x, u)
      y = Mul(a, b)
    }"""
    model = graph(body, one=one, two=two)
    Canonicalize()(model)
    apply(KEEP, model)
    assert ops(model).count("MatMulNBits") == 2
    assert ops(model).count("MatMul") == 3, "one for the sums, one for each weight's offsets"


QKV = """g (float[b,s,64] x, float[b,2,p,16] pk, float[b,2,p,16] pv, int32[b,1] n, int32 t) => (
    float[b,s,64] y, float[b,2,q,16] k2, float[b,2,q,16] v2) {
  a = Transpose<perm=[1,0]>(wq)
  c = Transpose<perm=[1,0]>(wk)
  d = Transpose<perm=[1,0]>(wv)
  q = MatMul(x, a)
  k = MatMul(x, c)
  v = MatMul(x, d)
  y, k2, v2 = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, k, v, pk, pv, n, t)
}"""


def packed_qkv(types: tuple[str, str, str]) -> tuple[ir.Model, Callable[[], np.ndarray]]:
    weights = [
        stored(random(n, 64, seed=n + i), kind)
        for i, (n, kind) in enumerate(zip((64, 32, 32), types, strict=True))
    ]
    model = graph(QKV, wq=weights[0][0], wk=weights[1][0], wv=weights[2][0])
    Canonicalize()(model)
    PackQkv()(model)
    apply(KEEP, model)
    return model, lambda: np.concatenate([values for _, values in weights])


def part(model: ir.Model, ending: str) -> np.ndarray:
    (found,) = [value for name, value in model.graph.initializers.items() if name.endswith(ending)]
    return found.const_value.numpy()


@pytest.mark.parametrize("type_name", TYPES)
def test_packed_query_key_and_value_keep_their_blocks(type_name):
    model, values = packed_qkv((type_name,) * 3)
    bits = 8 if type_name == "Q8_0" else 4
    codes, steps = part(model, f".q{bits}"), part(model, ".scales")
    assert codes.shape == (128, 2, 4 * bits)
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(128, 2, 32)
    decoded = (codes.astype(np.float32) - (1 << (bits - 1))) * steps[..., None]
    if type_name == "Q4_1":
        decoded = decoded + part(model, ".minimums").astype(np.float32)[..., None] + 8 * steps[..., None]
    np.testing.assert_array_equal(decoded.reshape(128, 64), values())


def test_blocks_of_two_forms_are_not_joined_but_rounded_anew():
    with notes.listen() as said:
        model, _ = packed_qkv(("Q4_1", "Q4_1", "Q8_0"))
    (reason,) = [note.reason for note in said if note.what == "joined blocks"]
    assert (
        "4 bits in 32 from the minimum, 4 bits in 32 from the minimum, 8 bits in 32 from the middle" in reason
    )
    (product,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert product.attributes["bits"].as_int() == KEEP.bits
    assert product.attributes["block_size"].as_int() == KEEP.block_size


def test_nothing_is_kept_unless_asked():
    model = graph(LINEAR, w=stored(random(64, 96), "Q4_1")[0])
    Canonicalize()(model)
    apply(QuantizeWeights(min_elements=0), model)
    assert ops(model) == ["MatMulNBits"]


@dataclass(frozen=True)
class Made:
    """Seeded blocks of any form, as a GPTQ or AWQ checkpoint has them."""

    bits: int
    block: int
    origin: str
    shape: tuple[int, int] = (64, 96)
    order: np.ndarray | None = None
    seed: int = 0

    @property
    def form(self) -> stored_blocks.Form:
        return self.bits, self.block, self.origin

    def read(self) -> stored_blocks.Coded:
        rng, (count, width) = np.random.default_rng(self.seed), self.shape
        codes = rng.integers(0, 1 << self.bits, self.shape, dtype=np.uint8)
        steps = rng.normal(size=(count, width // self.block)).astype(np.float16).astype(np.float32)
        zeros = rng.integers(0, 1 << self.bits, steps.shape, dtype=np.uint8)
        return codes, steps, zeros if self.origin == stored_blocks.ZERO else None

    def values(self) -> np.ndarray:
        codes, steps, zeros = self.read()
        origin = 1 << (self.bits - 1) if zeros is None else zeros.repeat(self.block, 1).astype(np.float32)
        values = (codes - np.float32(origin)) * steps.repeat(self.block, 1)
        if self.order is None:
            return values
        ordered = np.empty_like(values)
        ordered[:, self.order] = values
        return ordered

    def tensor(self) -> ir.LazyTensor:
        lazy = ir.LazyTensor(
            lambda: ir.tensor(self.values()), dtype=ir.DataType.FLOAT, shape=ir.Shape(self.shape), name="w"
        )
        lazy.meta[stored_blocks.STORED_BLOCKS] = self
        return lazy


ORDER = np.random.default_rng(7).permutation(96)


@pytest.mark.parametrize("order", [None, ORDER], ids=["in order", "reordered"])
@pytest.mark.parametrize("origin", [stored_blocks.MIDDLE, stored_blocks.ZERO])
@pytest.mark.parametrize(("bits", "block"), [(4, 32), (8, 32), (4, 16)])
def test_zero_points_and_orders_multiply_like_their_source_bit_for_bit(bits, block, origin, order):
    made = Made(bits, block, origin, order=order)
    model = graph(LINEAR, w=made.tensor())
    Canonicalize()(model)
    apply(KEEP, model)
    assert ops(model) == (["MatMulNBits"] if order is None else ["Gather", "MatMulNBits"])
    codes, steps, zeros = made.read()
    np.testing.assert_array_equal(part(model, ".scales"), steps)
    packed = part(model, f".q{bits}").reshape(64, -1)
    assert np.array_equal(packed, codes if bits == 8 else codes[:, ::2] | codes[:, 1::2] << 4)
    if zeros is not None:
        kept = part(model, ".zeros")
        halves = kept if bits == 8 else np.stack([kept & 15, kept >> 4], -1).reshape(64, -1)
        assert np.array_equal(halves[:, : zeros.shape[1]], zeros)
    (got,) = run(model, {"x": np.eye(96, dtype=np.float32)[None]})
    np.testing.assert_array_equal(got[0], made.values().T)


def test_activations_are_reordered_once_for_all_that_read_them_alike():
    one, two = (Made(4, 32, stored_blocks.ZERO, order=ORDER, seed=seed) for seed in (1, 2))
    body = """g (float[b,s,96] x) => (float[b,s,64] y) {
      t = Transpose<perm=[1,0]>(one)
      u = Transpose<perm=[1,0]>(two)
      a = MatMul(x, t)
      b = MatMul(x, u)
      y = Mul(a, b)
    }"""
    model = graph(body, one=one.tensor(), two=two.tensor())
    Canonicalize()(model)
    apply(KEEP, model)
    assert ops(model).count("Gather") == 1


def test_an_embedding_whose_columns_are_reordered_stays_float():
    made = Made(8, 32, stored_blocks.MIDDLE, order=ORDER)
    model = graph(
        "g (int64[b,s] ids) => (float[b,s,96] e) {\n e = Gather(table, ids)\n}", table=made.tensor()
    )
    said = declined(QuantizeWeights(keep_blocks=True, min_embedding=0), model)
    assert "no neighbours" in said


@pytest.mark.parametrize("other", [ORDER[::-1].copy(), None], ids=["another order", "no order"])
def test_weights_of_two_orders_are_not_joined(other):
    first = Made(4, 32, stored_blocks.ZERO, (64, 96), ORDER)
    second = Made(4, 32, stored_blocks.ZERO, (64, 96), other)
    result = ir.tensor(np.zeros((96, 128), np.float32))
    pieces = []
    for made in (first, second):
        turned = ir.tensor(made.values().T)
        stored_blocks.turned(made.tensor(), turned)
        pieces.append((turned, tuple(range(64))))
    stored_blocks.joined(pieces, result)
    assert stored_blocks.stored_blocks(result, transposed=True) is None
    stored_blocks.joined(pieces[:1] * 2, result)
    assert stored_blocks.stored_blocks(result, transposed=True).order is ORDER


def test_plain_blocks_are_cut_and_anything_else_is_rounded_with_the_reason():
    plain = QuantizeWeights(bits=4, keep_blocks=True, plain_blocks=True, accuracy_level=0, min_elements=0)
    made = Made(4, 96, stored_blocks.MIDDLE)
    model = graph(LINEAR, w=made.tensor())
    Canonicalize()(model)
    apply(plain, model)
    assert part(model, ".scales").shape == (64, 3)
    (got,) = run(model, {"x": np.eye(96, dtype=np.float32)[None]})
    np.testing.assert_array_equal(got[0], made.values().T)
    for other, reason in (
        (Made(4, 32, stored_blocks.ZERO), "own zero; symmetric"),
        (Made(4, 48, stored_blocks.MIDDLE), "blocks of 48 cannot be cut to 32"),
        (Made(8, 32, stored_blocks.MIDDLE), "8 bits, more than 4"),
    ):
        model = graph(LINEAR, w=other.tensor())
        Canonicalize()(model)
        said = apply(plain, model)
        assert any(reason in note.reason for note in said)
        assert part(model, ".scales").shape == (64, 3)
