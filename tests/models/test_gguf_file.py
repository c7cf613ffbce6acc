"""The GGUF container: everything the reference reader reads, and a refusal for every lie in a header."""

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants

from onnxforge.models import SourceError, UnsupportedModel, open_model
from onnxforge.models.demo import locate_demo
from onnxforge.models.gguf_file import read_gguf
from onnxforge.models.gguf_tensors import READABLE, GgufBlocks


def _write(path: Path) -> Path:
    """A small file with every kind of metadata and two tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -1)
    writer.add_uint64("a.u64", 2**63)
    writer.add_int64("a.i64", -(2**62))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_string("a.string", "naïve ✓")
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.strings", ["x", "", "z"])
    writer.add_tensor("token_embd.weight", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("output_norm.weight", np.arange(3, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return _write(tmp_path / "small.gguf")


@pytest.mark.parametrize("origin", ["small", "demo"])
def test_the_reference_reader_sees_the_same_file(origin, small):
    path = small if origin == "small" else locate_demo("smollm2-135m")
    ours, reference = read_gguf(path), GGUFReader(path)
    expected = {name: field for name, field in reference.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata.keys() == expected.keys()
    for name, field in expected.items():
        value = field.contents()
        assert ours.metadata[name] == (tuple(value) if isinstance(value, list) else value), name
    assert [
        (t.name, tuple(reversed(t.shape.tolist())), int(t.tensor_type), t.data_offset, t.n_bytes)
        for t in reference.tensors
    ] == [(t.name, t.shape, t.ggml_type, t.offset, t.size) for t in ours.tensors.values()]


@pytest.mark.parametrize("name", READABLE)
def test_each_readable_type_gives_the_values_that_were_stored(name, tmp_path):
    kind = GGMLQuantizationType[name]
    values = np.random.default_rng(3).standard_normal((4, 512), dtype=np.float32)
    try:
        packed = quants.quantize(values, kind)
    except NotImplementedError:  # the package only reads k-quants: any bytes with finite scales will do
        packed = np.full(quants.quant_shape_to_byte_shape(values.shape, kind), 0x11, np.uint8)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "m.gguf")
    blocks = GgufBlocks(file.path, file.tensors["w"])
    assert (blocks.type_name, file.tensors["w"].shape) == (name, (4, 512))
    read = blocks.values()
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, quants.dequantize(packed, kind))


def test_every_truncation_is_refused(small):
    data = small.read_bytes()
    for size in range(len(data) - 31):  # the last tensor ends within the padding of the file
        small.write_bytes(data[:size])
        with pytest.raises(SourceError, match="small"):
            read_gguf(small)


_HEAD = b"GGUF" + struct.pack("<I", 3)


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _tensor(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"GGML" + bytes(60), "begins with b'GGML'"),
        (b"GGUF" + struct.pack("<I", 99) + bytes(60), "version 99"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(60), "version 50331648"),
        (_HEAD + struct.pack("<QQ", 2**63, 0), "8 bytes are announced"),
        (_HEAD + struct.pack("<QQ", 0, 2**63) + _string("k") + struct.pack("<IB", 0, 1), "announced"),
        (_HEAD + struct.pack("<QQQ", 0, 1, 2**63) + b"key", "bytes are announced"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _string("k") + struct.pack("<IIQ", 9, 0, 2**62), "announced"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _string("k") + struct.pack("<IIQ", 9, 8, 2**62), "strings"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _string("k") + struct.pack("<IIQ", 9, 9, 1), "array of arrays"),
        (_HEAD + struct.pack("<QQ", 0, 1) + _string("k") + struct.pack("<I", 77), "unknown type 77"),
        (_HEAD + struct.pack("<QQ", 0, 2) + (_string("k") + struct.pack("<IB", 0, 1)) * 2, "twice"),
        (_HEAD + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8), "utf-8"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (2**40, 2**40), 0, 0), "the file ends at"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (4,), 0, 2**60), "the file ends at"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (5,), 2, 0), "blocks of 32"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (0, 4), 0, 0), "impossible"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (4,), 999, 0), "unknown ggml type 999"),
        (_HEAD + struct.pack("<QQ", 1, 0) + _tensor("w", (1,) * 9, 0, 0), "9 dimensions"),
        (_HEAD + struct.pack("<QQ", 2, 0) + _tensor("w", (1,), 0, 0) * 2 + bytes(99), "stands twice"),
        (
            _HEAD
            + struct.pack("<QQ", 2, 0)
            + _tensor("v", (4,), 0, 0)
            + _tensor("w", (4,), 0, 8)
            + bytes(99),
            "'v' and 'w' share bytes",
        ),
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(data, reason, tmp_path):
    path = tmp_path / "lie.gguf"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read_gguf(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_tensors_outside_the_file_are_named_at_once(tmp_path):
    path = tmp_path / "cut.gguf"
    rows = _tensor("first", (64,), 0, 0) + _tensor("second", (64,), 0, 256)
    path.write_bytes(_HEAD + struct.pack("<QQ", 2, 0) + rows)
    with pytest.raises(SourceError, match=r"2 problems: \(1\) tensor 'first'.*\(2\) tensor 'second'"):
        read_gguf(path)


def test_damaged_headers_end_in_a_known_error(small):
    """600 seeded mutations of a header: accepted, or refused by name; nothing else, and nothing slow."""
    data = small.read_bytes()
    rng = random.Random(20261121)
    refused = 0
    for _ in range(600):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed) - 48)] = rng.choice((0, 1, 127, 255, rng.randrange(256)))
        small.write_bytes(changed)
        try:
            open_model(str(small))
        except (SourceError, UnsupportedModel):
            refused += 1
    assert refused == 600  # the file has no tokenizer, so even an unharmed header is refused


def test_a_file_that_shrinks_while_in_use_is_an_error_not_a_crash(small):
    file = read_gguf(small)
    small.write_bytes(small.read_bytes()[:100])
    with pytest.raises(SourceError, match="changed while it was in use"):
        GgufBlocks(file.path, file.tensors["token_embd.weight"]).values()
