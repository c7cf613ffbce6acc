"""Existing ``.onnx`` files: any common spelling comes out under the contract; everything else is refused."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.models import SourceError, SourceKind, UnsupportedModel, export_model, open_model
from onnxforge.models.onnx_contract import load_graph
from onnxforge.models.onnx_names import canonical

_CONFIG = {"model_type": "llama", "max_position_embeddings": 64, "architectures": ["LlamaForCausalLM"]}

_DECODER = """
<ir_version: 8, opset_import: ["" : 17]>
decoder (int64[N, S] input_ids, float[N, 2, P, 4] {past}0{dot}key, float[N, 2, P, 4] {past}0{dot}value,
         int64[N, T] attention_mask)
  => (float[N, S, V] logits, float[N, 2, T, 4] {present}0{dot}key, float[N, 2, T, 4] {present}0{dot}value)
<float[5, 8] table = {{{table}}}, int64[4] heads = {{0, 0, 2, 4}}>
{{
  [hidden] embedded = Gather (table, input_ids)
  split = Reshape (embedded, heads)
  fresh = Transpose <perm = [0, 2, 1, 3]> (split)
  {present}0{dot}key = Concat <axis = 2> ({past}0{dot}key, fresh)
  {present}0{dot}value = Concat <axis = 2> ({past}0{dot}value, fresh)
  logits = Identity (embedded)
}}
"""

_ENCODER = """
<ir_version: 8, opset_import: ["" : 17]>
encoder (int64[b, s] attention_mask, int64[b, s] input_ids, int64[b, s] {types})
  => (float[b, s, 8] {output})
<float[5, 8] table = {{{table}}}>
{{
  {output} = Gather (table, input_ids)
}}
"""

_TABLE = ", ".join(str(value) for value in range(40))


def _decoder(past: str = "past_key_values.", present: str = "present.", dot: str = ".") -> onnx.ModelProto:
    # ONNX's text form has no dots in names: they are written as __ and put back afterwards.
    text = _DECODER.format(
        past=past.replace(".", "__"),
        present=present.replace(".", "__"),
        dot=dot.replace(".", "__"),
        table=_TABLE,
    )
    model = onnx.parser.parse_model(text)
    for names in (
        *(node.input for node in model.graph.node),
        *(node.output for node in model.graph.node),
    ):
        names[:] = [name.replace("__", ".") for name in names]
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    return model


def _encoder(output: str = "last_hidden_state", types: str = "token_type_ids") -> onnx.ModelProto:
    return onnx.parser.parse_model(_ENCODER.format(output=output, types=types, table=_TABLE))


def _write(folder: Path, model: onnx.ModelProto, config: dict[str, object] | None = None) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    (folder / "config.json").write_text(json.dumps(_CONFIG if config is None else config))
    return path


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
    path = _write(tmp_path, _decoder(past, present, dot))
    model = load_graph(path, _CONFIG)
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
    proto = _decoder()
    floats = onnx.TensorProto.FLOAT
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("embedded", floats, ["N", "S", 8]))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("split", floats, ["N", "Q", 2, 4]))
    values = {v.name: v for node in load_graph(_write(tmp_path, proto), _CONFIG).graph for v in node.outputs}
    assert _shape(values["embedded"]) == ["batch_size", "sequence_length", 8]
    assert _shape(values["split"]) == ["batch_size", None, 2, 4]


def test_half_precision_caches_are_kept_as_they_are(tmp_path):
    proto = _decoder()
    for value in (*proto.graph.input[1:3], *proto.graph.output[1:3]):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model = load_graph(_write(tmp_path, proto), _CONFIG)
    assert model.graph.inputs[2].dtype is ir.DataType.FLOAT16


def test_symbolic_heads_are_settled_by_the_config(tmp_path):
    proto = _decoder()
    for value in (*proto.graph.input[1:3], *proto.graph.output[1:3]):
        value.type.tensor_type.shape.dim[1].dim_param = "h"
        value.type.tensor_type.shape.dim[3].dim_param = "d"
    path = _write(tmp_path, proto)
    sizes = {"num_attention_heads": 2, "hidden_size": 8}
    assert _shape(load_graph(path, _CONFIG | sizes).graph.inputs[2])[1::2] == [2, 4]
    with pytest.raises(SourceError, match="static heads and head size were needed"):
        load_graph(path, _CONFIG)


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
    model = load_graph(_write(tmp_path, _encoder(output, "segment_ids")), config)
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
    proto = _decoder()
    edit(proto.graph)
    with pytest.raises(SourceError) as caught:
        load_graph(_write(tmp_path, proto), _CONFIG)
    message = str(caught.value)
    assert reason in message
    assert "past_key_values.0.key[N,2,P,4]" in message.replace("'", "").replace(" ", "")
    assert "A decoder needs input_ids, attention_mask, past_key_values.N.key/value" in message
    assert "\n" not in message


def test_a_decoder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(SourceError, match="neither a decoder with a key/value cache nor an encoder"):
        load_graph(_write(tmp_path, _encoder("logits")), _CONFIG)


def test_no_context_length_is_said(tmp_path):
    with pytest.raises(SourceError, match="the context length is not known"):
        load_graph(_write(tmp_path, _decoder()), {"model_type": "llama"})


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "is empty"), (b"\xff" * 64, "not an ONNX model"), (b"\x08\x08", "holds no graph")],
)
def test_what_is_no_graph_is_refused(data, reason, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    with pytest.raises(SourceError, match=reason):
        load_graph(path, _CONFIG)
    with pytest.raises(SourceError, match=reason):
        open_model(str(path))


def test_truncations_are_refused_or_read_as_a_smaller_valid_graph(tmp_path):
    path = _write(tmp_path, _decoder())
    data = path.read_bytes()
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        with pytest.raises(SourceError):
            load_graph(path, _CONFIG)


# ------------------------------------------------------------------ the source around the graph


@pytest.mark.parametrize("inner", ["", "onnx"])
def test_config_and_tokenizer_are_found_beside_the_graph_or_one_folder_up(inner, tmp_path):
    (tmp_path / inner).mkdir(exist_ok=True)
    path = tmp_path / inner / "model.onnx"
    _external(path)
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG | {"auto_map": {}}))
    (tmp_path / "tokenizer.json").write_text("{}")
    source = open_model(str(path))
    assert (source.kind, source.graph) == (SourceKind.ONNX, path.resolve())
    assert source.config == _CONFIG
    assert source.sidecars == {"tokenizer.json": b"{}"}
    expected = [
        "config.json",
        "tokenizer.json",
        str(Path(inner, "model.onnx")),
        str(Path(inner, "weights.bin")),
    ]
    assert source.digests == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in sorted(expected)
    }
    model = export_model(source)
    table = model.graph.initializers["table"].const_value
    np.testing.assert_array_equal(table.numpy(), np.arange(40, dtype=np.float32).reshape(5, 8))


def test_a_graph_without_config_says_where_it_was_looked_for(tmp_path):
    onnx.save(_decoder(), tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="neither beside the graph nor one folder up"):
        open_model(str(tmp_path / "model.onnx"))


def _external(path: Path, **entries: str) -> None:
    """Write the decoder with its table in ``weights.bin``; ``entries`` replace external data entries."""
    proto = _decoder()
    table = proto.graph.initializer[0]
    assert table.name == "table"
    (path.parent / "weights.bin").write_bytes(bytes(16) + onnx.numpy_helper.to_array(table).tobytes())
    table.ClearField("float_data")
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    for key, value in ({"location": "weights.bin", "offset": "16", "length": "160"} | entries).items():
        table.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "absent.bin"}, "cannot be opened: No such file"),
        ({"location": "../outside.bin"}, "not a path inside the model's folder"),
        ({"location": "/etc/passwd"}, "not a path inside the model's folder"),
        ({"location": ""}, "not a path inside the model's folder"),
        ({"offset": "-1"}, "announces offset -1"),
        ({"offset": "17"}, "ends at byte 177 of weights.bin, which has 176"),
        ({"length": "159"}, "needs 160 bytes and announces offset 16, length 159"),
        ({"length": str(2**50)}, "needs 160 bytes"),
        ({"__class__": "x"}, "unknown external data keys"),
    ],
)
def test_external_data_that_lies_is_refused(entries, reason, tmp_path):
    path = tmp_path / "model.onnx"
    (tmp_path.parent / "outside.bin").write_bytes(bytes(400))
    _external(path, **entries)
    with pytest.raises(SourceError) as caught:
        load_graph(path, _CONFIG)
    assert reason in str(caught.value)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("link", "leads outside"),
        ("fifo", "not a regular file"),
        ("folder", "not a regular file"),
        ("hard link", "several hard links"),
    ],
)
def test_external_data_must_be_a_plain_file_of_the_folder(kind, reason, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    _external(folder / "model.onnx")
    weights, secret = folder / "weights.bin", tmp_path / "secret"
    weights.rename(secret)
    if kind == "link":
        weights.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(weights)
    elif kind == "folder":
        weights.mkdir()
    else:
        os.link(secret, weights)
    with pytest.raises(SourceError, match=reason):
        load_graph(folder / "model.onnx", _CONFIG)


def test_tensors_that_share_bytes_are_refused_unless_they_are_the_same(tmp_path):
    path = tmp_path / "model.onnx"
    _external(path)
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    path.write_bytes(proto.SerializeToString())
    load_graph(path, _CONFIG)
    twin.external_data[1].value = "12"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match=r"'twin' and 'table' share bytes of weights\.bin"):
        load_graph(path, _CONFIG)


def test_a_graph_in_the_hub_cache_is_read_through_its_links(tmp_path):
    blobs = tmp_path / "models--o--n" / "blobs"
    inner = tmp_path / "models--o--n" / "snapshots" / "abc" / "onnx"
    blobs.mkdir(parents=True)
    inner.mkdir(parents=True)
    _external(blobs / "model.onnx")
    (blobs / "config").write_text(json.dumps(_CONFIG))
    (inner / "model.onnx").symlink_to("../../../blobs/model.onnx")
    (inner / "weights.bin").symlink_to("../../../blobs/weights.bin")
    (inner.parent / "config.json").symlink_to("../../blobs/config")
    source = open_model(str(inner / "model.onnx"))
    assert set(source.digests) == {"onnx/model.onnx", "onnx/weights.bin", "config.json"}
    table = load_graph(source.graph, source.config).graph.initializers["table"].const_value
    assert table.numpy()[1, 0] == 8.0


def test_a_graph_knows_its_task(tmp_path):
    """A config.json often names the checkpoint's class while the graph gives hidden states."""
    config = {"model_type": "bert", "max_position_embeddings": 32, "architectures": ["BertForMaskedLM"]}
    source = open_model(str(_write(tmp_path, _encoder("last_hidden_state", "token_type_ids"), config)))
    assert export_model(source).metadata_props["onnxforge.task"] == "feature-extraction"
    assert export_model(source, "feature-extraction").graph.name
    with pytest.raises(UnsupportedModel, match=r"cannot become one for fill-mask.*Leave `--task` out"):
        export_model(source, "fill-mask")
