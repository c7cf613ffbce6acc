"""The smallest ELF libraries that say what they need."""

import struct
from collections.abc import Sequence
from pathlib import Path

ADDRESS = 0x10000
"""Of the text, which lies elsewhere in the file."""


def write_library(path: Path, needed: Sequence[str] = ()) -> Path:
    """A 64-bit ELF file with two program headers, a dynamic section and its text."""
    text, entries = b"\0", []
    for name in needed:
        entries.append((1, len(text)))
        text += name.encode() + b"\0"
    entries += [(5, ADDRESS), (10, len(text)), (0, 0), (1, 0)]  # what follows the end is not read
    dynamic = b"".join(struct.pack("<qQ", *entry) for entry in entries)
    at = 64 + 2 * 56
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    held, place = len(dynamic), at + len(dynamic)
    segments = struct.pack("<IIQQQQQQ", 2, 6, at, 0x8000, 0x8000, held, held, 8)
    segments += struct.pack("<IIQQQQQQ", 1, 5, place, ADDRESS, ADDRESS, len(text), len(text), 4096)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head + segments + dynamic + text)
    return path
