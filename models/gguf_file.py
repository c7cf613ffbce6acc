"""The GGUF container: metadata and the table of tensors, read with every length checked against the file.

Written for strangers' files: nothing is allocated on the word of a header, and no count is looped over
before the bytes for it are known to exist. Layout: the GGUF specification, versions 2 and 3, little-endian.
Block sizes come from the ``gguf`` package.
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from onnxforge.models.errors import SourceError
from onnxforge.models.files import open_plain

Scalar: TypeAlias = bool | int | float | str
Value: TypeAlias = Scalar | tuple[bool, ...] | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_MAX_DIMS = 4
_DAMAGED = "The file is damaged or was cut short: fetch it again and compare its sha256 with the publisher's"


class _Type(IntEnum):
    """Type codes of metadata values, as the GGUF specification numbers them."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    _Type.UINT8: "B",
    _Type.INT8: "b",
    _Type.UINT16: "H",
    _Type.INT16: "h",
    _Type.UINT32: "I",
    _Type.INT32: "i",
    _Type.FLOAT32: "f",
    _Type.BOOL: "?",
    _Type.UINT64: "Q",
    _Type.INT64: "q",
    _Type.FLOAT64: "d",
}


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table. The bytes stay in the file."""

    name: str
    ggml_type: int
    """Number of the ggml type, a ``gguf.GGMLQuantizationType``."""
    shape: tuple[int, ...]
    """Row-major, as numpy and PyTorch write it; the file stores it reversed."""
    offset: int
    """Bytes from the start of the file."""
    size: int
    """Bytes."""


@dataclass(frozen=True)
class GgufFile:
    """A parsed GGUF header."""

    path: Path
    metadata: Mapping[str, Value]
    tensors: Mapping[str, GgufTensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the metadata and the tensor table of a GGUF file.

    Raises:
        SourceError: not a GGUF file, a version or tensor type that is not known, or lengths that do not
            agree with the file. Tensors that lie outside the file are all named at once.
    """
    with open_plain(path) as file:
        try:
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise SourceError(f"{path} is empty. {_DAMAGED}.") from error
        with view:
            try:
                return _parse(path, view)
            except (struct.error, UnicodeDecodeError, _Broken) as error:
                raise SourceError(f"{path} is not a readable GGUF file: {error}. {_DAMAGED}.") from error


class _Broken(Exception):
    """A header that contradicts itself or the size of the file."""


class _Cursor:
    """A position in the mapped file; every read is checked against the end."""

    def __init__(self, view: mmap.mmap) -> None:
        self.view = view
        self.at = 0

    def take(self, size: int) -> bytes:
        if size > len(self.view) - self.at:
            raise _Broken(
                f"byte {self.at:,}: {size:,} bytes are announced, {len(self.view) - self.at:,} remain"
            )
        data = self.view[self.at : self.at + size]
        self.at += size
        return data

    def many(self, code: str, count: int) -> tuple[bool, ...] | tuple[int, ...] | tuple[float, ...]:
        data = self.take(count * struct.calcsize(f"<{code}"))
        return struct.unpack(f"<{count}{code}", data)

    def unsigned(self, code: str) -> int:
        (value,) = self.many(code, 1)
        return int(value)

    def string(self) -> str:
        return self.take(self.unsigned("Q")).decode("utf-8")


def _parse(path: Path, view: mmap.mmap) -> GgufFile:
    cursor = _Cursor(view)
    if (magic := cursor.take(4)) != _MAGIC:
        raise _Broken(f"it begins with {magic!r}, a GGUF file begins with {_MAGIC!r}")
    version = cursor.unsigned("I")
    if version not in _VERSIONS:
        raise _Broken(f"version {version}; versions {_VERSIONS} in little-endian order are known")
    tensor_count, value_count = cursor.unsigned("Q"), cursor.unsigned("Q")
    metadata: dict[str, Value] = {}
    for _ in range(value_count):
        name = cursor.string()
        if name in metadata:
            raise _Broken(f"metadata key {name!r} stands twice")
        metadata[name] = _value(cursor, name)
    rows = [_row(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise _Broken(f"general.alignment is {alignment!r}; a power of two was needed")
    start = cursor.at + -cursor.at % alignment
    return GgufFile(path, metadata, _placed(path, rows, start, len(view)))


def _value(cursor: _Cursor, name: str) -> Value:
    kind = _kind(cursor.unsigned("I"), name)
    if kind is _Type.STRING:
        return cursor.string()
    if kind is not _Type.ARRAY:
        return cursor.many(_FORMATS[kind], 1)[0]
    item, count = _kind(cursor.unsigned("I"), name), cursor.unsigned("Q")
    if item is _Type.ARRAY:
        raise _Broken(f"metadata key {name!r} is an array of arrays, which no known model uses")
    if item is not _Type.STRING:
        return cursor.many(_FORMATS[item], count)
    if count * 8 > len(cursor.view) - cursor.at:  # each string has an 8-byte length
        raise _Broken(f"metadata key {name!r} announces {count:,} strings, more than the file can hold")
    return tuple(cursor.string() for _ in range(count))


def _kind(code: int, name: str) -> _Type:
    try:
        return _Type(code)
    except ValueError as error:
        raise _Broken(f"metadata key {name!r} has the unknown type {code}") from error


@dataclass(frozen=True)
class _Row:
    name: str
    dims: tuple[int, ...]
    ggml_type: int
    offset: int


def _row(cursor: _Cursor) -> _Row:
    name = cursor.string()
    rank = cursor.unsigned("I")
    if not 1 <= rank <= _MAX_DIMS:
        raise _Broken(f"tensor {name!r} has {rank} dimensions; 1 to {_MAX_DIMS} are possible")
    dims = tuple(int(dim) for dim in cursor.many("Q", rank))
    return _Row(name, dims, cursor.unsigned("I"), cursor.unsigned("Q"))


def _placed(path: Path, rows: list[_Row], start: int, end: int) -> dict[str, GgufTensor]:
    """Give each row its place in the file; collect every row that does not fit."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    tensors: dict[str, GgufTensor] = {}
    problems: list[str] = []
    for row in rows:
        if row.name in tensors:
            problems.append(f"tensor {row.name!r} stands twice")
            continue
        if row.ggml_type not in {int(known) for known in GGMLQuantizationType}:
            problems.append(f"tensor {row.name!r} has the unknown ggml type {row.ggml_type}")
            continue
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(row.ggml_type)]
        shape = tuple(reversed(row.dims))
        elements = 1
        for dim in shape:
            elements *= dim
        if elements == 0 or shape[-1] % block:
            problems.append(f"tensor {row.name!r} has shape {shape}, impossible with blocks of {block}")
            continue
        size = elements // block * block_bytes
        offset = start + row.offset
        if offset + size > end:
            problems.append(
                f"tensor {row.name!r} needs bytes {offset:,} to {offset + size:,}, the file ends at {end:,}"
            )
        tensors[row.name] = GgufTensor(row.name, row.ggml_type, shape, offset, size)
    problems += _overlaps(tensors)
    if problems:
        raise SourceError.listing(f"{path}", _shortened(problems), _DAMAGED + ".")
    return tensors


def _overlaps(tensors: Mapping[str, GgufTensor]) -> list[str]:
    ordered = sorted(tensors.values(), key=lambda tensor: tensor.offset)
    return [
        f"tensors {before.name!r} and {after.name!r} share bytes"
        for before, after in pairwise(ordered)
        if before.offset + before.size > after.offset
    ]


def _shortened(problems: list[str], most: int = 8) -> list[str]:
    return problems if len(problems) <= most else [*problems[:most], f"and {len(problems) - most} more"]
