"""A lazy weight is computed when it is asked for, every time, and has to keep its promise."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.passes.lazy import lazy_tensor


def test_nothing_is_computed_before_it_is_asked_for():
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.ones((2, 3), np.float32)

    tensor = lazy_tensor(compute, dtype=ir.DataType.FLOAT, shape=(2, 3), name="w")
    assert (tuple(tensor.shape), tensor.dtype, tensor.nbytes, calls) == ((2, 3), ir.DataType.FLOAT, 24, [])
    np.testing.assert_array_equal(tensor.numpy(), np.ones((2, 3)))
    tensor.numpy()
    assert len(calls) == 2


def test_a_transposed_view_is_written_in_its_own_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensor = lazy_tensor(lambda: array.T, dtype=ir.DataType.FLOAT, shape=(3, 2))
    assert tensor.tobytes() == np.ascontiguousarray(array.T).tobytes()


def test_a_broken_promise_is_an_error():
    wrong = lazy_tensor(lambda: np.ones((3, 2), np.float32), dtype=ir.DataType.FLOAT, shape=(2, 3), name="w")
    with pytest.raises(ValueError, match=r"'w': computed shape \(3, 2\), declared \(2, 3\)"):
        wrong.numpy()
    other = lazy_tensor(lambda: np.ones(2, np.float64), dtype=ir.DataType.FLOAT, shape=(2,))
    with pytest.raises((TypeError, ValueError)):
        other.numpy()
