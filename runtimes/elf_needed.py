"""Which shared libraries a library asks for: the DT_NEEDED entries of a 64-bit ELF file.

Source: System V ABI, "Object Files" and "Dynamic Linking". Read in a few small pieces: the CUDA provider's
library has 284 MB.

    header -> program headers -> PT_DYNAMIC: (tag, value), ...    DT_NEEDED: a name's place in the text
                                                                  DT_STRTAB: the address of the text
                              -> PT_LOAD: where an address lies in the file
"""

import struct
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_ENTRY = struct.Struct("<qQ")
_LOAD, _DYNAMIC = 1, 2
_NULL, _NEEDED, _TEXT = 0, 1, 5
_MOST_SEGMENTS, _MOST_ENTRIES, _LONGEST_NAME = 256, 4096, 255
_LITTLE_64 = b"\x7fELF\x02\x01"


def needed_libraries(path: Path) -> tuple[str, ...]:
    """Names as the file has them, such as ``libcublas.so.13``, in its order.

    Raises OSError when the file cannot be read, ValueError when it is no little-endian 64-bit ELF file.
    """
    with path.open("rb") as file:
        segments = _segments(file, path)
        entries = [entry for kind, *rest in segments if kind == _DYNAMIC for entry in _entries(file, rest)]
        text = next((value for tag, value in entries if tag == _TEXT), None)
        if text is None:
            return ()
        start = _place(segments, text, path)
        return tuple(_name(file, start + value) for tag, value in entries if tag == _NEEDED)


def _segments(file: BinaryIO, path: Path) -> list[tuple[int, int, int, int]]:
    """Of each program header: kind, place in the file, address, bytes in the file."""
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_LITTLE_64):
        raise ValueError(f"{path} is no 64-bit little-endian ELF file.")
    fields = _HEADER.unpack(head)
    table, size, count = fields[5], fields[9], fields[10]
    if size != _SEGMENT.size or count > _MOST_SEGMENTS:
        raise ValueError(f"{path}: its ELF program headers are not of the known form.")
    file.seek(table)
    read = file.read(size * count)
    if len(read) < size * count:
        raise ValueError(f"{path} ends within its ELF program headers.")
    return [(kind, at, address, held) for kind, _, at, address, _, held, _, _ in _SEGMENT.iter_unpack(read)]


def _entries(file: BinaryIO, dynamic: list[int]) -> list[tuple[int, int]]:
    """Tag and value of each entry in front of the closing one."""
    at, _, size = dynamic
    file.seek(at)
    read = file.read(min(size, _MOST_ENTRIES * _ENTRY.size))
    found = []
    for tag, value in _ENTRY.iter_unpack(read[: len(read) // _ENTRY.size * _ENTRY.size]):
        if tag == _NULL:
            break
        found.append((tag, value))
    return found


def _place(segments: list[tuple[int, int, int, int]], address: int, path: Path) -> int:
    for kind, at, first, held in segments:
        if kind == _LOAD and first <= address < first + held:
            return at + address - first
    raise ValueError(f"{path}: no ELF segment holds the names of the libraries it needs.")


def _name(file: BinaryIO, at: int) -> str:
    file.seek(at)
    return file.read(_LONGEST_NAME + 1).split(b"\0", 1)[0].decode("ascii", "replace")
