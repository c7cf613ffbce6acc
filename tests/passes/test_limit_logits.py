"""`limit-logits`: the caller may ask for the logits of the last tokens only; nobody has to."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from onnxforge.passes import notes
from onnxforge.passes.limit_logits import LOGITS_TO_KEEP, LimitLogits

DECODER = """
<ir_version: 10, opset_import: ["" : 21]>
decoder (float[batch_size,sequence_length,4] hidden, float[batch_size,1,past,2] "past_key_values.0.key")
    => (float[batch_size,sequence_length,6] logits, float[batch_size,1,past,2] "present.0.key")
<float[4,6] weight = {WEIGHT}, float cap = {30.0}>
{
    "present.0.key" = Identity("past_key_values.0.key")
    normed = Relu(hidden)
    scores = MatMul(normed, weight)
    scaled = Div(scores, cap)
    squashed = Tanh(scaled)
    logits = Mul(squashed, cap)
}
"""


def decoder(text: str = DECODER) -> ir.Model:
    weights = ", ".join(f"{x:.3f}" for x in np.random.default_rng(0).standard_normal(24))
    model = ir.from_onnx_text(text.replace("{WEIGHT}", "{" + weights + "}"))
    for node in model.graph:  # the slice goes where shapes are known, as they are after export
        for value in node.outputs:
            if value.name in {"normed", "scores"}:
                value.shape = ir.Shape(["batch_size", "sequence_length", 4 if value.name == "normed" else 6])
                value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


def session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


@pytest.fixture
def feeds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "hidden": rng.standard_normal((2, 5, 4)).astype(np.float32),
        "past_key_values.0.key": np.zeros((2, 1, 0, 2), np.float32),
    }


@pytest.mark.parametrize("keep", [None, 0, 1, 3, 5])
def test_kept_logits_equal_the_tail_of_all_logits(feeds, keep):
    everything = session(decoder()).run(["logits"], feeds)[0]
    limited = decoder()
    assert LimitLogits()(limited).modified
    asked = {} if keep is None else {LOGITS_TO_KEEP: np.array(keep, np.int64)}
    logits = session(limited).run(["logits"], feeds | asked)[0]
    np.testing.assert_array_equal(logits, everything[:, -keep:] if keep else everything)


def test_the_new_input_is_optional():
    model = decoder()
    LimitLogits()(model)
    run = session(model)
    assert LOGITS_TO_KEEP not in [item.name for item in run.get_inputs()]
    assert [item.name for item in run.get_overridable_initializers()] == [LOGITS_TO_KEEP]


def test_the_slice_stands_in_front_of_the_head_and_not_behind_it():
    model = decoder()
    LimitLogits()(model)
    order = [node.op_type for node in model.graph]
    assert order.index("Slice") < order.index("MatMul")


def test_it_is_idempotent():
    model = decoder()
    LimitLogits()(model)
    before = ir.to_onnx_text(model)
    assert not LimitLogits()(model).modified
    assert before == ir.to_onnx_text(model)


def test_logits_that_no_projection_makes_are_left_alone_with_the_reason():
    model = decoder(DECODER.replace("scores = MatMul(normed, weight)", "scores = Softmax(normed)"))
    with notes.listen() as heard:
        assert not LimitLogits()(model).modified
    assert [note.kind for note in heard] == [notes.NoteKind.NEAR_MISS]
    assert "no projection" in heard[0].reason


def test_a_classifier_is_not_a_decoder():
    text = DECODER.replace("past_key_values.0.key", "other").replace("present.0.key", "out")
    model = decoder(text)
    assert not LimitLogits()(model).modified
