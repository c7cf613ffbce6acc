"""Hugging Face folders: what is read, and that everything wrong with one is said at once."""

import hashlib
import json
import os
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from safetensors.numpy import save, save_file

from onnxforge.models import SourceError, SourceKind, UnsupportedModel, open_model
from onnxforge.models.safetensors_file import read_safetensors

_CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}
_RNG = np.random.default_rng(5)
_TENSORS = {
    "full": _RNG.standard_normal((3, 4)).astype(np.float32),
    "half": _RNG.standard_normal((5,)).astype(np.float16),
    "brain": _RNG.standard_normal((2, 3)).astype(ml_dtypes.bfloat16),
    "scalar": np.array(2.5, np.float32),
    "counts": np.arange(7, dtype=np.int64),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    save_file(_TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    return tmp_path


def _shard(folder: Path) -> None:
    """Split the weights of ``folder`` over two files with an index."""
    (folder / "model.safetensors").unlink()
    names = sorted(_TENSORS)
    files = {"model-00001-of-00002.safetensors": names[:2], "model-00002-of-00002.safetensors": names[2:]}
    for file, held in files.items():
        save_file({name: _TENSORS[name] for name in held}, folder / file)
    table = {name: file for file, held in files.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_keep_their_values_and_their_stored_dtype(folder, sharded):
    if sharded:
        _shard(folder)
    source = open_model(str(folder))
    assert source.kind is SourceKind.FOLDER
    assert source.config == _CONFIG
    assert source.weights.keys() == _TENSORS.keys()
    for name, expected in _TENSORS.items():
        tensor = source.weights[name]
        assert tensor.dtype == ir.DataType.from_numpy(expected.dtype)
        assert tuple(tensor.shape.numpy()) == expected.shape
        np.testing.assert_array_equal(tensor.numpy(), expected)


def test_every_file_that_was_read_is_in_the_digests(folder):
    _shard(folder)
    source = open_model(str(folder))
    assert source.digests == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()
    }


def test_weights_are_not_in_memory_until_they_are_asked_for(folder):
    source = open_model(str(folder))
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="changed while it was in use"):
        source.weights["full"].numpy()


def test_keys_that_name_code_do_not_get_through(folder):
    evil = {
        "auto_map": {"AutoModel": "modeling.Evil"},
        "trust_remote_code": True,
        "_attn_implementation": "x/y",
    }
    (folder / "config.json").write_text(json.dumps(_CONFIG | evil))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {}, "model_max_length": 9}))
    source = open_model(str(folder))
    assert source.config == _CONFIG
    assert json.loads(source.sidecars["tokenizer_config.json"]) == {"model_max_length": 9}


def test_side_files_travel_unchanged_and_a_template_gets_its_own_file(folder):
    (folder / "tokenizer_config.json").write_text('{"chat_template":  "{{ messages }}"}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    sidecars = open_model(str(folder)).sidecars
    assert sidecars["tokenizer_config.json"] == b'{"chat_template":  "{{ messages }}"}'
    assert sidecars["chat_template.jinja"] == b"{{ messages }}"
    assert sidecars["1_Pooling/config.json"] == b'{"pooling_mode_mean_tokens": true}'


def test_everything_that_is_wrong_is_said_at_once(folder):
    _shard(folder)
    (folder / "config.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    last = folder / "model-00002-of-00002.safetensors"
    last.write_bytes(last.read_bytes()[:-5])
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(SourceError) as caught:
        open_model(str(folder))
    message = str(caught.value)
    assert "4 problems" in message
    for part in ("config.json", "model-00001-of-00002", "the file holds", "tokenizer.json is not valid JSON"):
        assert part in message
    assert "\n" not in message


def test_an_index_that_promises_tensors_which_are_not_there_is_refused(folder):
    _shard(folder)
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())["weight_map"]
    index.write_text(
        json.dumps({"weight_map": table | {"ghost": next(iter(table.values())), "x": "../../etc/passwd"}})
    )
    with pytest.raises(SourceError, match=r"(?s)'x' into '../../etc/passwd'.*'ghost'"):
        open_model(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "model.ckpt"])
def test_pickles_are_refused_with_the_way_out(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(SourceError, match=rf"only as pickles \({name}\).*Convert the weights to safetensors"):
        open_model(str(folder))
    with pytest.raises(SourceError, match="is a pickle"):
        open_model(str(folder / name))


def test_a_module_that_would_change_the_embedding_is_refused(folder):
    kinds = ["sentence_transformers.models.Transformer", "sentence_transformers.models.Dense"]
    (folder / "modules.json").write_text(json.dumps([{"type": kind} for kind in kinds]))
    with pytest.raises(UnsupportedModel, match="asks for Dense"):
        open_model(str(folder))


def test_a_snapshot_in_the_hub_cache_is_read_through_its_links(folder, tmp_path):
    repository = tmp_path / "models--org--name"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for index, name in enumerate(("config.json", "model.safetensors", "tokenizer.json")):
        (folder / name).rename(blobs / f"blob{index}")
        (snapshot / name).symlink_to(f"../../blobs/blob{index}")
    np.testing.assert_array_equal(open_model(str(snapshot)).weights["full"].numpy(), _TENSORS["full"])


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.timeout(20)
def test_only_plain_files_of_the_folder_are_opened(folder, tmp_path_factory, kind, name):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    if kind == "link":
        (folder / name).symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    with pytest.raises(SourceError, match="leads outside" if kind == "link" else "regular file"):
        open_model(str(folder))


def _header(entries: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def _entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a whole safetensors file"),
        (struct.pack("<Q", 2**60) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 5) + b"{...}", "not valid JSON"),
        (struct.pack("<Q", 2) + b"[]", "an object was needed"),
        (_header({"a": _entry(0, 8, [2])}, bytes(4)), "tensors take 8 bytes, the file holds 4"),
        (_header({"a": _entry(0, 8, [2])}, bytes(12)), "tensors take 8 bytes, the file holds 12"),
        (_header({"a": _entry(0, 8, [3])}, bytes(8)), "needs 12 bytes and announces 8"),
        (_header({"a": _entry(0, 8, [2]), "b": _entry(4, 12, [2])}, bytes(12)), "begins at byte 4"),
        (_header({"a": _entry(0, 8, [2]), "b": _entry(12, 20, [2])}, bytes(20)), "begins at byte 12"),
        (_header({"a": _entry(0, 8, [-2])}, bytes(8)), "has shape [-2]"),
        (_header({"a": _entry(0, 8, [2], "F99")}, bytes(8)), "dtype 'F99'"),
        (_header({"a": _entry(0, 8, [2**40, 2**40])}, bytes(8)), "needs"),
        (_header({"a": 3}), "dtype None"),
    ],
)
def test_a_header_that_disagrees_with_its_file_is_refused(data, reason, tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read_safetensors(path)
    assert reason in str(caught.value)


def test_every_truncation_is_refused(tmp_path):
    path, data = tmp_path / "m.safetensors", save(_TENSORS)
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(SourceError):
            read_safetensors(path)
