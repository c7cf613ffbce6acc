"""What a distillation has learned so far, kept on disk, so that an interrupted compile goes on.

``$XDG_CACHE_HOME/onnxforge/distillation/<key>/`` (``~/.cache`` where that is not set) holds one file for each
finished part. The key is a digest of all that the result hangs on: the method, the student's graph and
weights, the teacher's graph and its source, the step's options and the token ids. A file is written beside
its place and moved there whole. One that cannot be read counts as absent. What nobody has asked for in a
week is removed when the next distillation starts, and of the rest all but the last four.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_data import data_of
from onnxforge.passes import notes

WHAT = "distillation checkpoint"
_DAYS, _KEPT = 7, 4
_METHOD = "2"
"""Counted up when the same step on the same model learns something else."""
_FACTS = "facts"


@dataclass(frozen=True, eq=False)
class Learned:
    """A finished part: trained weights by name, and numbers that belong to them."""

    weights: Mapping[str, np.ndarray]
    numbers: Mapping[str, float]


@dataclass(frozen=True)
class DistillationCache:
    """The parts of one distillation."""

    folder: Path

    def load(self, part: str) -> Learned | None:
        """What was saved as ``part``; None, with a note where it is damaged, when there is nothing to use."""
        path = self.folder / f"{part}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                facts = json.loads(str(file[_FACTS]))
                weights = {name: file[f"w{place}"] for place, name in enumerate(facts["names"])}
            return Learned(weights, facts["numbers"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as problem:
            notes.near_miss(WHAT, str(path), f"cannot be read ({problem}); this part is learned anew")
            return None

    def save(self, part: str, learned: Learned) -> None:
        """Write ``part``, whole or not at all. A disk that cannot take it costs the part, not the run."""
        path = self.folder / f"{part}.npz"
        facts = json.dumps({"names": list(learned.weights), "numbers": dict(learned.numbers)})
        arrays = {f"w{place}": array for place, array in enumerate(learned.weights.values())}
        temporary: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
            temporary = Path(name)
            with os.fdopen(handle, "wb") as file:
                np.savez(file, allow_pickle=False, **{_FACTS: np.array(facts)}, **arrays)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as problem:
            notes.near_miss(WHAT, str(path), f"cannot be written ({problem})")
            if temporary is not None:
                temporary.unlink(missing_ok=True)


def distillation_cache(student: ir.Model, teacher: ir.Model, step: str, text: str) -> DistillationCache:
    """The cache for this student, teacher, text of the step and digest of the token ids; old ones go."""
    digest = hashlib.sha256("\n".join((_METHOD, step, text)).encode())
    data = data_of(student)
    for name, found in sorted(data.source.digests.items()) if data is not None else ():
        digest.update(f"{name} {found}\n".encode())
    for model in (student, teacher):
        for line in _structure(model.graph):
            digest.update(line.encode())
    for value in student.graph.initializers.values():
        if value.const_value is not None and value.dtype == ir.DataType.FLOAT:
            digest.update(np.ascontiguousarray(value.const_value.numpy()).data)
    root = _root()
    _forget(root)
    folder = root / digest.hexdigest()[:32]
    if folder.is_dir():
        os.utime(folder)
    return DistillationCache(folder)


def _structure(graph: ir.Graph) -> Iterator[str]:
    for node in graph:
        names = [value.name if value is not None else "" for value in (*node.inputs, *node.outputs)]
        attributes = [str(attribute) for attribute in node.attributes.values()]
        yield f"{node.domain} {node.op_type} {names} {attributes}\n"
    for name, value in graph.initializers.items():
        yield f"{name} {value.dtype} {value.shape}\n"


def _root() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxforge" / "distillation"


def _forget(root: Path) -> None:
    """Remove what is old; a folder that another compile uses was touched lately."""
    try:
        folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: -f.stat().st_mtime)
    except OSError:
        return
    oldest = time.time() - _DAYS * 86400
    for place, folder in enumerate(folders):
        if place >= _KEPT or folder.stat().st_mtime < oldest:
            shutil.rmtree(folder, ignore_errors=True)
