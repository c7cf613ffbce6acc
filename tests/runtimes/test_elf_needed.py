"""The names that a shared library asks for are read from its bytes, and odd bytes are refused."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
from elf_files import ADDRESS, write_library

from onnxforge.runtimes.elf_needed import needed_libraries

NAMES = ("libcublas.so.13", "libc.so.6")


def test_names_in_their_order(tmp_path):
    assert needed_libraries(write_library(tmp_path / "lib.so", NAMES)) == NAMES
    assert needed_libraries(write_library(tmp_path / "alone.so")) == ()


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("readelf"), reason="needs readelf")
def test_a_real_library_as_readelf_reads_it():
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("onnxruntime_pybind11_state*.so"))
    said = subprocess.run(["readelf", "-dW", str(library)], capture_output=True, text=True, check=True).stdout
    assert needed_libraries(library) == tuple(re.findall(r"\(NEEDED\).*\[(.*)\]", said))


def test_a_library_without_a_dynamic_section_needs_nothing(tmp_path):
    path = write_library(tmp_path / "lib.so", NAMES)
    data = bytearray(path.read_bytes())
    data[64] = 4  # PT_NOTE in place of PT_DYNAMIC
    path.write_bytes(data)
    assert needed_libraries(path) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "no 64-bit"),
        (lambda data: data[:40], "no 64-bit"),
        (lambda data: b"MZ" + data[2:], "no 64-bit"),
        (lambda data: data[:4] + b"\x01" + data[5:], "no 64-bit"),
        (lambda data: data[:100], "ends within"),
        (lambda data: data[:56] + b"\xff\xff" + data[58:], "not of the known form"),
        (
            lambda data: data.replace(ADDRESS.to_bytes(8, "little"), (1).to_bytes(8, "little"), 1),
            "no ELF segment",
        ),
    ],
)
def test_odd_bytes_are_refused(tmp_path, change, message):
    path = write_library(tmp_path / "lib.so", NAMES)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        needed_libraries(path)


def test_every_cut_is_either_refused_or_read(tmp_path):
    data = write_library(tmp_path / "lib.so", NAMES).read_bytes()
    path = tmp_path / "cut.so"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        try:
            found = needed_libraries(path)
        except ValueError:
            continue
        assert len(found) <= len(NAMES)
