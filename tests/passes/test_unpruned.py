"""The copy that pruning leaves behind for recovery."""

import numpy as np
import onnx_ir as ir

from onnxforge.passes.input_moments import InputMoments, leave_moments, moments_of
from onnxforge.passes.unpruned import remember_unpruned, unpruned

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[2] x) => (float[2] y) { y = Relu(x) }"""


def test_the_first_copy_is_kept_and_is_of_its_own() -> None:
    model = ir.from_onnx_text(TEXT)
    assert unpruned(model) is None
    remember_unpruned(model)
    model.graph.node(0).op_type = "Neg"
    remember_unpruned(model)
    kept = unpruned(model)
    assert kept is not None
    assert [node.op_type for node in kept.graph] == ["Relu"]
    assert [node.op_type for node in model.graph] == ["Neg"]


def test_the_copy_does_not_hold_what_was_measured() -> None:
    model = ir.from_onnx_text(TEXT)
    value = model.graph.node(0).outputs[0]
    leave_moments(value, InputMoments(np.eye(2, dtype=np.float32), 1))
    remember_unpruned(model)
    assert moments_of(value) is not None
    assert moments_of(unpruned(model).graph.node(0).outputs[0]) is None
