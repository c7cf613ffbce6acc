"""Every encoder family against PyTorch, for each task, over a ragged batch."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.models.families import FAMILIES
from onnxforge.models.tasks import Task

ENCODERS = sorted(name for name, family in FAMILIES.items() if not family.is_decoder)
LENGTHS = (11, 5, 8)


def _batch(rng: np.random.Generator, pad: int) -> tuple[np.ndarray, np.ndarray]:
    ids = rng.integers(3, 97, (len(LENGTHS), max(LENGTHS)))
    mask = np.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, :length] = 1
    return np.where(mask == 1, ids, pad), mask


def _run(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


# Heads that are the same code as one beside them: XLM-RoBERTa is RoBERTa, a token head is a linear layer.
ALIKE = {("xlm-roberta", task) for task in Task if task is not Task.FEATURE_EXTRACTION}
ALIKE |= {(name, Task.TOKEN_CLASSIFICATION) for name in ENCODERS if name != "bert"}
CASES = [
    pytest.param(name, task, marks=[pytest.mark.slow] if (name, task) in ALIKE else [])
    for name in ENCODERS
    for task in FAMILIES[name].classes
]


@pytest.mark.parametrize(("model_type", "task"), CASES)
def test_ragged_batch_matches_pytorch(model_type, task, tiny_torch, tiny_source, tiny_export):
    import torch

    rng = np.random.default_rng(11)
    ids, mask = _batch(rng, tiny_source(model_type, task).config["pad_token_id"])
    feed = {"input_ids": ids, "attention_mask": mask}
    if FAMILIES[model_type].token_types:
        feed["token_type_ids"] = rng.integers(0, 2, ids.shape) * mask
    with torch.no_grad():
        expected = tiny_torch(model_type, task)(**{name: torch.tensor(value) for name, value in feed.items()})
    output = "last_hidden_state" if task is Task.FEATURE_EXTRACTION else "logits"
    exported = tiny_export(model_type, task)
    result = _run(exported, feed)

    assert [value.name for value in exported.graph.outputs] == [output]
    difference = np.abs(result - expected[output].numpy())
    assert result.shape == expected[output].shape
    assert (difference if difference.ndim == 2 else difference[mask == 1]).max() < 1e-4
