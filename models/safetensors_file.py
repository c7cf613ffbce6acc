"""Safetensors files as lazy tensors: the header is checked, the values stay in the file.

Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxforge.models.errors import SourceError
from onnxforge.models.files import open_plain, parse_object
from onnxforge.models.source import Json

_HEADER_LIMIT = 100 * 10**6
"""The format's own limit on the header, in bytes."""
_DTYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "F8_E4M3": ir.DataType.FLOAT8E4M3FN,
    "F8_E5M2": ir.DataType.FLOAT8E5M2,
    "I64": ir.DataType.INT64,
    "I32": ir.DataType.INT32,
    "I16": ir.DataType.INT16,
    "I8": ir.DataType.INT8,
    "U64": ir.DataType.UINT64,
    "U32": ir.DataType.UINT32,
    "U16": ir.DataType.UINT16,
    "U8": ir.DataType.UINT8,
    "BOOL": ir.DataType.BOOL,
}


@dataclass(frozen=True)
class _Entry:
    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: Path) -> dict[str, ir.LazyTensor]:
    """Lazy tensors by name, in the dtype they are stored in (bfloat16 stays bfloat16).

    Each is mapped from the file when its value is asked for, and unmapped when the value is dropped.

    Raises:
        SourceError: the header is not what the format prescribes, or disagrees with the size of the file:
            truncated, overlapping or padded tensors, impossible shapes. All problems of the file at once.
    """
    with open_plain(path) as file:
        prefix = file.read(8)
        size = file.seek(0, 2)
        (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
        if not 2 <= length <= min(_HEADER_LIMIT, size - 8):
            raise SourceError(
                f"{path} is not a whole safetensors file: {size:,} bytes with a header of {length:,}. Fetch "
                "it again."
            )
        file.seek(8)
        header = parse_object(file.read(length), f"the header of {path}")
    header.pop("__metadata__", None)
    start = 8 + length
    problems: list[str] = []
    entries = [
        entry for name, value in header.items() if (entry := _entry(name, value, problems)) is not None
    ]
    problems += _layout_problems(entries, size - start)
    if problems:
        raise SourceError.listing(
            f"{path}", problems[:8], "Fetch the file again, or convert the model again."
        )
    return {entry.name: _lazy(path, start, entry) for entry in entries}


def _entry(name: str, value: Json, problems: list[str]) -> _Entry | None:
    fields = value if isinstance(value, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        problems.append(f"tensor {name!r} has dtype {dtype!r}")
        return None
    dims, span = _naturals(shape), _naturals(offsets)
    if dims is None or span is None or len(span) != 2:
        problems.append(f"tensor {name!r} has shape {shape} and offsets {offsets}")
        return None
    entry = _Entry(name, _DTYPES[dtype], dims, span[0], span[1])
    needed = entry.dtype.bitwidth // 8
    for dim in dims:
        needed *= dim
    if span[1] - span[0] != needed:
        problems.append(f"tensor {name!r} needs {needed:,} bytes and announces {span[1] - span[0]:,}")
        return None
    return entry


def _naturals(value: Json) -> tuple[int, ...] | None:
    if not isinstance(value, list):
        return None
    numbers = tuple(
        item for item in value if isinstance(item, int) and not isinstance(item, bool) and item >= 0
    )
    return numbers if len(numbers) == len(value) else None


def _layout_problems(entries: list[_Entry], available: int) -> list[str]:
    """Tensors must follow one another without holes or overlaps and fill the file."""
    problems: list[str] = []
    position = 0
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            problems.append(
                f"tensor {entry.name!r} begins at byte {entry.begin:,}, {position:,} was expected"
            )
        position = max(position, entry.end)
    if position != available:
        problems.append(f"tensors take {position:,} bytes, the file holds {available:,}")
    return problems


def _lazy(path: Path, start: int, entry: _Entry) -> ir.LazyTensor:
    def evaluate() -> ir.TensorProtocol:
        dtype = entry.dtype.numpy()
        if entry.begin == entry.end:
            return ir.Tensor(np.empty(entry.shape, dtype), dtype=entry.dtype, name=entry.name)
        try:
            data = np.memmap(path, np.uint8, "r", start + entry.begin, (entry.end - entry.begin,))
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{path}: tensor {entry.name!r} cannot be read any more: {error}. The file changed while it "
                "was in use; start again."
            ) from error
        return ir.Tensor(data.view(dtype).reshape(entry.shape), dtype=entry.dtype, name=entry.name)

    return ir.LazyTensor(evaluate, dtype=entry.dtype, shape=ir.Shape(entry.shape), name=entry.name)
