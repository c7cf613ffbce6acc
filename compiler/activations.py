"""What flows through a graph on real tokens: the rows of chosen values, batch after batch."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.passes.constants import constant
from onnxforge.passes.matching import is_op


def multiplied(graph: ir.Graph) -> list[ir.Value]:
    """The distinct left operands of MatMuls by a matrix that does not depend on the input, in graph order."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if is_op(node, "MatMul") and node.inputs[0] is not None and _is_weight(node.inputs[1]):
            found.setdefault(node.inputs[0])
    return list(found)


def watched_rows(
    model: ir.Model, values: Sequence[ir.Value], batches: Iterable[CalibrationBatch]
) -> Iterator[tuple[np.ndarray, ...]]:
    """The rows of ``values`` for each batch: float32 [T, K] each, padding left out, in the order asked for.

    A value [B, S, K] gives one row for every real token; one of another shape (a pooled sentence [B, K])
    gives all of its rows. ``model`` is unchanged. One session serves all batches, and only what the values
    depend on is written, loaded and run: values of an early layer cost the early layers, and no logits are
    computed for nothing. Memory is that of the weights and of one batch; batches are taken as they come.

    Raises:
        ValueError: a value that no node of the graph makes.
        UnknownInput: the graph wants an input that a token sequence does not give.
    """
    names = [value.name or "" for value in values]
    with tempfile.TemporaryDirectory(prefix="onnxforge-activations-") as temp:
        session = _open(model, names, Path(temp))
        for batch in batches:
            feeds = whole_sequence_feeds(session.get_inputs(), batch.ids, batch.mask, "calibration")
            yield _run(session, feeds, names, batch.mask.astype(bool))


def _is_weight(value: ir.Value | None) -> bool:
    made_by = value.producer() if value is not None else None
    source = made_by.inputs[0] if made_by is not None and is_op(made_by, "Transpose") else value
    return constant(source) is not None


def _open(model: ir.Model, names: Sequence[str], folder: Path) -> ort.InferenceSession:
    """A session on a copy of ``model`` cut down to what the values called ``names`` need."""
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    missing = [name for name in names if name not in made]
    if missing:
        raise ValueError(f"the graph makes no value {', '.join(map(repr, missing))}")
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(made[name] for name in dict.fromkeys(names))
    RemoveUnusedNodesPass()(copy)
    save_model(copy, folder)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])


def _run(
    session: ort.InferenceSession, feeds: Mapping[str, np.ndarray], names: Sequence[str], real: np.ndarray
) -> tuple[np.ndarray, ...]:
    fetch = [output.name for output in session.get_outputs()]
    found = dict(zip(fetch, session.run(fetch, dict(feeds)), strict=True))
    for name in fetch:
        found[name] = _rows(found[name], real)  # one after the other: never two copies of everything
    return tuple(found[name] for name in names)


def _rows(value: np.ndarray, real: np.ndarray) -> np.ndarray:
    padded = value.shape[:2] == real.shape and not real.all()
    rows = value[real] if padded else value.reshape(-1, value.shape[-1])
    return rows.astype(np.float32, copy=False)
