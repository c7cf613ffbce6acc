"""Seeded artifacts without their weights: a few megabytes to carry, and gigabytes again in seconds.

    python bench/gpu_hollow.py empty /tmp/gpu-artifacts/1.5B/* --into /tmp/carried/1.5B
    python bench/gpu_hollow.py fill /tmp/carried/1.5B/* --into /tmp/gpu-artifacts/1.5B

Speed does not depend on what the weights are. `empty` leaves the data file away and keeps, of each tensor,
its place, its type and a sample of its values; small tensors are kept whole. `fill` draws every element from
its tensor's sample, by a fixed seed. A model that is to say something cannot be carried so.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

HOLLOW = "onnx/hollow.json"
SAMPLES = "onnx/hollow.npy"
_DATA = "onnx/model.onnx_data"
_GRAPH = "onnx/model.onnx"
_WHOLE = 8 << 10
"""Bytes up to which a tensor is kept as it is: norms and biases."""
_SAMPLE = 4 << 10
_CHUNK = 1 << 24
"""Elements drawn at a time."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("empty", "fill"))
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--into", type=Path, required=True)
    asked = parser.parse_args()
    for folder in asked.artifacts:
        into = asked.into / folder.name
        (empty if asked.verb == "empty" else fill)(folder, into)
        print(f"{into}: {sum(p.stat().st_size for p in into.rglob('*') if p.is_file()) / 1e6:.1f} MB")
    return 0


def empty(folder: Path, into: Path) -> None:
    """Write ``folder`` without weights to ``into``."""
    _copy_small(folder, into, without=_DATA)
    data = np.memmap(folder / _DATA, np.uint8, "r")
    rng, kept, records, start = np.random.default_rng(0), [], [], 0
    for offset, size, width in sorted(_tensors(folder / _GRAPH)):
        values = data[offset : offset + size].reshape(-1, width)
        if size > _WHOLE:
            values = values[np.sort(rng.integers(0, len(values), _SAMPLE // width))]
        kept.append(values.reshape(-1))
        records.append([offset, size, width, start, start + values.size])
        start += values.size
    np.save(into / SAMPLES, np.concatenate(kept))
    (into / HOLLOW).write_text(json.dumps({"bytes": len(data), "tensors": records}))


def fill(folder: Path, into: Path) -> None:
    """Write ``folder``, which `empty` wrote, with weights again to ``into``; what is there is replaced."""
    _copy_small(folder, into, without=HOLLOW)
    said, samples = json.loads((folder / HOLLOW).read_text()), np.load(folder / SAMPLES)
    (into / _DATA).unlink(missing_ok=True)
    data = np.memmap(into / _DATA, np.uint8, "w+", shape=(said["bytes"],))
    for number, (offset, size, width, start, end) in enumerate(said["tensors"]):
        sample = samples[start:end]
        if size == end - start:
            data[offset : offset + size] = sample
            continue
        elements, rng = sample.view(f"u{width}"), np.random.default_rng(number)
        place = data[offset : offset + size].view(f"u{width}")
        for first in range(0, len(place), _CHUNK):
            part = place[first : first + _CHUNK]
            part[...] = elements[rng.integers(0, len(elements), len(part), dtype=np.uint16)]
    data.flush()


def _tensors(graph: Path) -> Iterator[tuple[int, int, int]]:
    """Offset, bytes and bytes of an element of every tensor in the data file, each once."""
    found = set()
    for part in ir.load(graph).graphs():
        for value in part.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.offset is not None:
                found.add((tensor.offset, tensor.nbytes, max(int(tensor.dtype.itemsize), 1)))
    yield from found


def _copy_small(folder: Path, into: Path, without: str) -> None:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in (without, SAMPLES):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, into / name)


if __name__ == "__main__":
    raise SystemExit(main())
