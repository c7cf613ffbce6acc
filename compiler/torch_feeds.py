"""Calibration batches as the torch tensors that a graph's inputs want."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
import torch

from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.graph_feeds import whole_sequence_feeds

_TYPES: Mapping[ir.DataType | None, str] = {
    ir.DataType.FLOAT: "tensor(float)",
    ir.DataType.FLOAT16: "tensor(float16)",
    ir.DataType.INT8: "tensor(int8)",
}


@dataclass(frozen=True)
class _Input:
    """What ONNX Runtime's sessions tell of an input."""

    name: str
    shape: tuple[int | str | None, ...]
    type: str


def torch_feeds(graph: ir.Graph, batch: CalibrationBatch) -> dict[str, torch.Tensor]:
    """Every input of ``graph`` without a default, by name: whole sequences, an empty cache.

    Raises:
        UnknownInput: an input that a token sequence does not give.
    """
    specs = [
        _Input(value.name or "", _dims(value), _TYPES.get(value.dtype, "tensor(int64)"))
        for value in graph.inputs
        if value.const_value is None
    ]
    feeds = whole_sequence_feeds(specs, batch.ids, batch.mask, "calibration")
    return {name: torch.from_numpy(array) for name, array in feeds.items()}


def _dims(value: ir.Value) -> tuple[int | str | None, ...]:
    shape = value.shape if value.shape is not None else ()
    return tuple(dim if isinstance(dim, int) else dim.value for dim in shape)
