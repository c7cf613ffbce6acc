"""The last matrix of a layer is found in every form of layer, and solved for as least squares has it."""

import numpy as np
import pytest
from damaged_students import damaged, fused

from onnxforge.compiler.stream_refit import Residual, best_change, last_product
from onnxforge.passes.layers import find_layers


def residual(data: np.ndarray, student: np.ndarray, teacher: np.ndarray) -> Residual:
    found = Residual(np.zeros((data.shape[1],) * 2), np.zeros((data.shape[1], student.shape[1])))
    for half in np.array_split(np.arange(len(data)), 2):
        found.add(data[half], student[half], teacher[half])
    return found


def rows(count: int, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((count, 6)).astype(np.float32)


def test_a_matrix_that_was_changed_is_found_again():
    rng = np.random.default_rng(0)
    right, wrong = rng.standard_normal((2, 6, 4)).astype(np.float32)
    halves = [residual(x, x @ wrong, x @ right) for x in (rows(400, rng), rows(100, rng))]
    change = best_change(*halves)
    assert np.abs(wrong + change - right).max() < 0.02
    assert halves[1].after(change) < 1e-4 * halves[1].left


def test_what_is_left_is_what_the_rows_say():
    rng = np.random.default_rng(1)
    x, change = rows(50, rng), rng.standard_normal((6, 4))
    student, teacher = rng.standard_normal((2, 50, 4)).astype(np.float32)
    found = residual(x, student, teacher)
    relative = np.square(teacher - student - x @ change).sum(1) / np.square(teacher).sum(1)
    assert found.after(change) == pytest.approx(relative.sum(), rel=1e-5)


def test_noise_is_not_learned():
    rng = np.random.default_rng(2)
    halves = [residual(rows(12, rng), *rng.standard_normal((2, 12, 4)).astype(np.float32)) for _ in range(2)]
    change = best_change(*halves)
    assert change is None or halves[1].after(change) < halves[1].left


@pytest.mark.parametrize(("family", "post_norm"), [("llama", False), ("bert", True)])
def test_the_last_matrix_of_a_layer(tiny_export, family, post_norm):
    model = damaged(fused(tiny_export(family)))
    for layer in find_layers(model.graph):
        found = last_product(layer.whole.end)
        assert tuple(found.weight.const_value.shape.numpy()) == (80, 64)
        assert found.total.producer().op_type == "Add"
        assert (found.total is not layer.whole.end) == post_norm


def test_an_end_that_is_no_sum_has_none(tiny_export):
    model = fused(tiny_export("llama"))
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    assert last_product(attention.outputs[0]) is None
    assert last_product(model.graph.inputs[0]) is None
