"""A failing pass, packed so that somebody else can see it fail: the graph before it, without its weights."""

import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

SMALL = 4096
"""Weights up to this many bytes travel along: shapes and scalars that patterns look at."""


def write_reproducer(model: ir.Model, passes: Sequence[str], error: BaseException) -> Path:
    """Write ``model.onnx``, ``pipeline.txt`` and ``error.txt`` into a new folder of the temporary directory.

    Larger weights keep name, shape and dtype but point to a file that is not there, so the graph loads
    and every structural pattern behaves as it did. ``model`` is changed: hand in a copy.
    """
    folder = Path(tempfile.mkdtemp(prefix="onnxforge-reproducer-"))
    (folder / "pipeline.txt").write_text("\n".join(passes) + "\n", encoding="utf-8")
    (folder / "error.txt").write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    offset = 0
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= SMALL:
                continue
            value.const_value = ir.ExternalTensor(
                "weights-not-included",
                offset,
                tensor.nbytes,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=folder,
            )
            offset += tensor.nbytes
    ir.save(model, folder / "model.onnx")
    return folder
