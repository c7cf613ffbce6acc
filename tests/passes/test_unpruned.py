"""The copy that pruning leaves behind for recovery."""

import onnx_ir as ir

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
