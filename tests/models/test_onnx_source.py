"""What lies around an ``.onnx`` graph: configuration, tokenizer, external data."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_models import CONFIG, decoder, encoder, external, write

from onnxforge.models import SourceError, SourceKind, UnsupportedModel, export_model, open_model
from onnxforge.models.onnx_contract import load_graph


@pytest.mark.parametrize("inner", ["", "onnx"])
def test_config_and_tokenizer_are_found_beside_the_graph_or_one_folder_up(inner, tmp_path):
    (tmp_path / inner).mkdir(exist_ok=True)
    path = tmp_path / inner / "model.onnx"
    external(path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"auto_map": {}}))
    (tmp_path / "tokenizer.json").write_text("{}")
    source = open_model(str(path))
    assert (source.kind, source.graph) == (SourceKind.ONNX, path.resolve())
    assert source.config == CONFIG
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
    onnx.save(decoder(), tmp_path / "model.onnx")
    with pytest.raises(SourceError, match="neither beside the graph nor one folder up"):
        open_model(str(tmp_path / "model.onnx"))


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
    external(path, **entries)
    with pytest.raises(SourceError) as caught:
        load_graph(path, CONFIG)
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
    external(folder / "model.onnx")
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
        load_graph(folder / "model.onnx", CONFIG)


def test_tensors_that_share_bytes_are_refused_unless_they_are_the_same(tmp_path):
    path = tmp_path / "model.onnx"
    external(path)
    proto = onnx.load(path, load_external_data=False)
    twin = proto.graph.initializer.add()
    twin.CopyFrom(proto.graph.initializer[0])
    twin.name = "twin"
    path.write_bytes(proto.SerializeToString())
    load_graph(path, CONFIG)
    twin.external_data[1].value = "12"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(SourceError, match=r"'twin' and 'table' share bytes of weights\.bin"):
        load_graph(path, CONFIG)


def test_a_graph_in_the_hub_cache_is_read_through_its_links(tmp_path):
    blobs = tmp_path / "models--o--n" / "blobs"
    inner = tmp_path / "models--o--n" / "snapshots" / "abc" / "onnx"
    blobs.mkdir(parents=True)
    inner.mkdir(parents=True)
    external(blobs / "model.onnx")
    (blobs / "config").write_text(json.dumps(CONFIG))
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
    source = open_model(str(write(tmp_path, encoder("last_hidden_state", "token_type_ids"), config)))
    assert export_model(source).metadata_props["onnxforge.task"] == "feature-extraction"
    assert export_model(source, "feature-extraction").graph.name
    with pytest.raises(UnsupportedModel, match=r"cannot become one for fill-mask.*Leave `--task` out"):
        export_model(source, "fill-mask")
