"""Tiny fused models and copies of them whose MLPs were damaged, as pruning leaves them."""

import itertools
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxforge.compiler import pipeline, training_run
from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.distillation_losses import answer_loss
from onnxforge.compiler.distillation_text import DistillationText, TextBatch
from onnxforge.compiler.targets import TARGETS
from onnxforge.compiler.torch_feeds import torch_feeds
from onnxforge.compiler.torch_graph import TorchGraph
from onnxforge.passes.unpruned import remember_unpruned, unpruned

FUSE = next(t for t in TARGETS if t.name == "cpu-fp32").passes[:-2]
DAMAGE = 0.3


def fused(model: ir.Model) -> ir.Model:
    for step in pipeline.parse(FUSE):
        step(model)
    return model


def damaged(model: ir.Model) -> ir.Model:
    """``model``, which remembers what it was, with part of every matrix that reads 80 channels gone."""
    remember_unpruned(model)
    for node in model.graph:
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        if weight is not None and weight.const_value is not None and weight.const_value.shape[0] == 80:
            matrix = np.array(weight.const_value.numpy())
            matrix[: int(80 * DAMAGE)] = 0
            weight.const_value = ir.tensor(matrix, name=weight.name)
    return model


def untimed(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Time passes by being looked at, so that a loaded machine learns as much; checkpoints in ``cache``."""
    ticks = itertools.count()
    monkeypatch.setattr(training_run, "monotonic", lambda: 0.01 * next(ticks))
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def text(count: int = 32, *, ragged: bool = False) -> DistillationText:
    rng = np.random.default_rng(3)
    batches = []
    for _ in range(count):
        mask = np.ones((4, 12), dtype=np.int64)
        if ragged:
            mask[1, 7:] = 0
        batches.append(TextBatch(CalibrationBatch(rng.integers(3, 97, mask.shape) * mask, mask)))
    return DistillationText(tuple(batches[:-1]), tuple(batches[-1:]), "digest of the ids")


def answers(model: ir.Model, batch: TextBatch) -> torch.Tensor:
    with torch.no_grad():
        return TorchGraph(model.graph, [model.graph.outputs[0]])(torch_feeds(model.graph, batch.batch))[0]


def loss_on(batch: TextBatch, model: ir.Model, name: str) -> float:
    """How far the answer ``name`` of ``model`` is from what it was before pruning."""
    said, taught = answers(model, batch), answers(unpruned(model), batch)
    return float(answer_loss(name, said, taught, batch.mask))


def bytes_of(model: ir.Model) -> dict[str, bytes]:
    return {
        name: np.ascontiguousarray(value.const_value.numpy()).tobytes()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
