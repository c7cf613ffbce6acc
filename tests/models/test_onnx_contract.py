"""Existing ``.onnx`` files: any common spelling comes out under the contract; everything else is refused."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_models import CONFIG, decoder, encoder, write

from onnxforge.models import SourceError, open_model
from onnxforge.models.onnx_contract import load_graph
from onnxforge.models.onnx_names import canonical


def _shape(value: ir.Value) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


@pytest.mark.parametrize(
    ("past", "present", "dot"),
    [
        ("past_key_values.", "present.", "."),
        ("past.", "present_key_values.", "."),
        ("past_key_values_", "present_key_values_", "_"),
        ("past_", "present_", "_"),
    ],
)
def test_every_common_spelling_of_a_decoder_comes_out_the_same_and_still_runs(past, present, dot, tmp_path):
    path = write(tmp_path, decoder(past, present, dot))
    model = load_graph(path, CONFIG)
    assert [value.name for value in model.graph.inputs] == [
        "input_ids",
        "attention_mask",
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert [value.name for value in model.graph.outputs] == ["logits", "present.0.key", "present.0.value"]
    shapes = [_shape(value) for value in (*model.graph.inputs, *model.graph.outputs)]
    cache = ["batch_size", 2, "past_sequence_length", 4]
    total = ["batch_size", 2, "total_sequence_length", 4]
    assert shapes[:4] == [
        ["batch_size", "sequence_length"],
        ["batch_size", "total_sequence_length"],
        cache,
        cache,
    ]
    assert shapes[5:] == [total, total]
    assert shapes[4][:2] == ["batch_size", "sequence_length"]
    assert model.metadata_props == {
        "onnxforge.task": "text-generation-with-past",
        "onnxforge.model_type": "llama",
        "onnxforge.context_length": "64",
        "onnxforge.source": "model.onnx",
    }

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    logits, key, _ = session.run(
        None,
        {
            "input_ids": np.array([[1, 3]]),
            "attention_mask": np.ones((1, 5), np.int64),
            "past_key_values.0.key": np.zeros((1, 2, 3, 4), np.float32),
            "past_key_values.0.value": np.zeros((1, 2, 3, 4), np.float32),
        },
    )
    np.testing.assert_array_equal(logits, np.arange(40, dtype=np.float32).reshape(1, 5, 8)[:, [1, 3]])
    assert key.shape == (1, 2, 5, 4)


@pytest.mark.parametrize(
    ("name", "is_input", "expected"),
    [
        ("past_key_values.11.key", True, "past_key_values.11.key"),
        ("past_key_values.11.value", False, "present.11.value"),
        ("past_key_values.3.self.key", True, "past_key_values.3.key"),
        ("past_key_3", True, "past_key_values.3.key"),
        ("past_value_3", True, "past_key_values.3.value"),
        ("past.7.v", True, "past_key_values.7.value"),
        ("present_key_values.7.value", False, "present.7.value"),
        ("present_keys_0", False, "present.0.key"),
        ("past_key_values.0.decoder.key", True, None),
        ("past_key_values.0.encoder.value", True, None),
        ("past_0", True, None),
        ("pixel_values", True, None),
        ("token_embeddings", False, "last_hidden_state"),
    ],
)
def test_names(name, is_input, expected):
    assert canonical(name, is_input) == expected


def test_sizes_between_follow_the_new_names_and_ambiguous_ones_are_forgotten(tmp_path):
    proto = decoder()
    floats = onnx.TensorProto.FLOAT
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("embedded", floats, ["N", "S", 8]))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("split", floats, ["N", "Q", 2, 4]))
    values = {v.name: v for node in load_graph(write(tmp_path, proto), CONFIG).graph for v in node.outputs}
    assert _shape(values["embedded"]) == ["batch_size", "sequence_length", 8]
    assert _shape(values["split"]) == ["batch_size", None, 2, 4]


def test_half_precision_caches_are_kept_as_they_are(tmp_path):
    proto = decoder()
    for value in (*proto.graph.input[1:3], *proto.graph.output[1:3]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model = load_graph(write(tmp_path, proto), CONFIG)
    assert model.graph.inputs[2].dtype is ir.DataType.FLOAT16


def test_symbolic_heads_are_settled_by_the_config(tmp_path):
    proto = decoder()
    for value in (*proto.graph.input[1:3], *proto.graph.output[1:3]):
        value.type.tensor_type.shape.dim[1].dim_param = "h"
        value.type.tensor_type.shape.dim[3].dim_param = "d"
    path = write(tmp_path, proto)
    sizes = {"num_attention_heads": 2, "hidden_size": 8}
    assert _shape(load_graph(path, CONFIG | sizes).graph.inputs[2])[1::2] == [2, 4]
    with pytest.raises(SourceError, match="static heads and head size were needed"):
        load_graph(path, CONFIG)


@pytest.mark.parametrize(
    ("architecture", "output", "task"),
    [
        ("BertModel", "last_hidden_state", "feature-extraction"),
        ("BertModel", "token_embeddings", "feature-extraction"),
        ("BertForTokenClassification", "logits", "token-classification"),
        ("BertForMaskedLM", "logits", "fill-mask"),
        ("BertForSequenceClassification", "logits", "text-classification"),
    ],
)
def test_an_encoder_is_told_by_its_output_and_its_class(architecture, output, task, tmp_path):
    config = {"model_type": "bert", "max_position_embeddings": 32, "architectures": [architecture]}
    model = load_graph(write(tmp_path, encoder(output, "segment_ids")), config)
    assert [value.name for value in model.graph.inputs] == ["input_ids", "attention_mask", "token_type_ids"]
    assert model.metadata_props["onnxforge.task"] == task
    assert _shape(model.graph.inputs[2]) == ["batch_size", "sequence_length"]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda g: g.output.pop(), "output present.0.value is missing"),
        (lambda g: g.input.pop(), "input 'attention_mask' is missing"),
        (
            lambda g: setattr(g.input[0].type.tensor_type, "elem_type", 6),
            "input_ids is INT32; INT64 was needed",
        ),
        (lambda g: setattr(g.input[0].type.tensor_type.shape.dim[1], "dim_value", 7), "two dynamic sizes"),
        (lambda g: setattr(g.input.add(), "name", "use_cache_branch"), "'use_cache_branch' has no place"),
        (lambda g: setattr(g.input[0], "name", "x"), "they fit neither a decoder"),
    ],
)
def test_what_does_not_fit_is_listed_with_what_was_found_and_needed(edit, reason, tmp_path):
    proto = decoder()
    edit(proto.graph)
    with pytest.raises(SourceError) as caught:
        load_graph(write(tmp_path, proto), CONFIG)
    message = str(caught.value)
    assert reason in message
    assert "past_key_values.0.key[N,2,P,4]" in message.replace("'", "").replace(" ", "")
    assert "A decoder needs input_ids, attention_mask, past_key_values.N.key/value" in message
    assert "\n" not in message


def test_a_decoder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(SourceError, match="neither a decoder with a key/value cache nor an encoder"):
        load_graph(write(tmp_path, encoder("logits")), CONFIG)


def test_no_context_length_is_said(tmp_path):
    with pytest.raises(SourceError, match="the context length is not known"):
        load_graph(write(tmp_path, decoder()), {"model_type": "llama"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"\xff" * 64, "not an ONNX model"), (b"\x08\x08", "holds no graph")],
)
def test_what_is_no_graph_is_refused(data, reason, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(SourceError, match=reason):
        load_graph(path, CONFIG)
    with pytest.raises(SourceError, match=reason):
        open_model(str(path))


def test_truncations_are_refused_or_read_as_a_smaller_valid_graph(tmp_path):
    path = write(tmp_path, decoder())
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(SourceError):
            load_graph(path, CONFIG)
