"""Integer grids of weights: nearest codes, exact zeros, and the codes that kernels expect."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import graph, random

from onnxforge.passes.qdq_scheme import TYPES, WEIGHTS, Granularity, WeightScheme, weight_scheme
from onnxforge.passes.weight_grid import quantize, quantized

COLUMNS = WeightScheme(TYPES["int8"], Granularity.CHANNEL, 32, symmetric=True)


def restored(weight: np.ndarray, scheme: WeightScheme) -> np.ndarray:
    found = quantize(weight, scheme)
    repeat = scheme.block_size if scheme.granularity is Granularity.BLOCK else 1
    spread = [np.repeat(np.atleast_2d(part), repeat, axis=0) for part in (found.zeros, found.steps)]
    return (found.codes - spread[0]) * spread[1]


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("symmetric", [True, False])
def test_no_weight_is_further_than_half_a_step(kind, granularity, symmetric):
    weight, scheme = random(64, 12), WeightScheme(TYPES[kind], granularity, 32, symmetric)
    found = quantize(weight, scheme)
    steps = np.repeat(found.steps, 32, axis=0) if granularity is Granularity.BLOCK else found.steps
    assert (np.abs(restored(weight, scheme) - weight) <= steps * 0.51).all()
    assert found.codes.min() >= TYPES[kind].least
    assert found.codes.max() <= TYPES[kind].most


@given(st.integers(0, 2**32 - 1), st.sampled_from(WEIGHTS), st.booleans())
def test_zero_stays_zero(seed, kind, symmetric):
    weight = random(32, 3, seed=seed % 1000) + np.float32(seed % 5)
    weight[seed % 32, 1] = 0
    weight[:, 2] = 0
    back = restored(weight, WeightScheme(TYPES[kind], Granularity.CHANNEL, 32, symmetric))
    assert back[seed % 32, 1] == 0
    assert (back[:, 2] == 0).all()


def test_int8_keeps_away_from_its_lowest_code():
    assert quantize(random(64, 8), COLUMNS).codes.min() == -127


def test_a_finer_grid_is_nearer():
    weight = random(64, 8) * np.linspace(0.1, 3, 64, dtype=np.float32)[:, None]

    def error(form: Granularity) -> float:
        return float(np.square(restored(weight, WeightScheme(TYPES["int4"], form, 32, True)) - weight).sum())

    assert error(Granularity.BLOCK) < error(Granularity.CHANNEL) < error(Granularity.TENSOR)


def test_a_reduced_range_cannot_saturate_16_bits():
    scheme = weight_scheme("int8", "channel", 32, symmetric=True, reduce_range=True)
    largest = int(np.abs(quantize(random(64, 8), scheme).codes).max())
    assert largest == 63
    assert 2 * 255 * largest <= np.iinfo(np.int16).max < 2 * 255 * 127


@pytest.mark.parametrize("kind", ["int4", "uint4"])
def test_half_bytes_are_stored_two_to_a_byte(kind):
    model = graph("g (float[n,4] x) => (float[n,4] y) { y = Neg(x) }")
    weight = random(64, 6)
    scheme = WeightScheme(TYPES[kind], Granularity.BLOCK, 32, symmetric=True)
    parts = quantized(model.graph, "w", lambda: weight, (64, 6), scheme)
    assert parts[0].name == f"w.{kind}"
    assert parts[0].const_value.nbytes == 64 * 6 // 2
    np.testing.assert_array_equal(
        parts[0].const_value.numpy().astype(np.int32), quantize(weight, scheme).codes
    )
    assert len(parts) == (2 if kind == "int4" else 3)


def test_a_table_is_quantized_row_by_row():
    model = graph("g (float[n,4] x) => (float[n,4] y) { y = Neg(x) }")
    table = random(10, 64)
    scheme = WeightScheme(TYPES["uint8"], Granularity.BLOCK, 32, symmetric=False)
    codes, steps, zeros = (
        part.const_value.numpy().astype(np.float32)
        for part in quantized(model.graph, "e", lambda: table, (10, 64), scheme, by_rows=True)
    )
    assert (codes.shape, steps.shape, zeros.shape) == ((10, 64), (10, 2), (10, 2))
    back = (codes - np.repeat(zeros, 32, axis=1)) * np.repeat(steps, 32, axis=1)
    assert np.abs(back - table).max() <= steps.max() / 2 * 1.0001


def test_parts_asked_for_in_any_order_belong_together():
    model = graph("g (float[n,4] x) => (float[n,4] y) { y = Neg(x) }")
    read = []
    weight = random(64, 6)

    def reading() -> np.ndarray:
        read.append(1)
        return weight

    codes, steps = quantized(model.graph, "w", reading, (64, 6), COLUMNS)
    first = steps.const_value.numpy()
    assert codes.const_value.numpy().dtype == np.int8
    np.testing.assert_array_equal(first, steps.const_value.numpy())
    assert codes.const_value.dtype == ir.DataType.INT8
    assert len(read) == 2, "the codes leave the steps behind"
