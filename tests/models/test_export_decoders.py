"""Every decoder family against PyTorch: ragged prefill on either side, then cached steps."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.models.families import FAMILIES

DECODERS = sorted(name for name, family in FAMILIES.items() if family.is_decoder)
WINDOWED = {"exaone4", "gemma2", "gemma3_text", "mistral", "phi3", "qwen2", "starcoder2"}
LENGTHS = (9, 4, 7)
STEPS = 3


def _session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _padded(rng: np.random.Generator, side: str) -> tuple[np.ndarray, np.ndarray]:
    ids = rng.integers(3, 97, (len(LENGTHS), max(LENGTHS)))
    mask = np.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(0, length) if side == "right" else slice(max(LENGTHS) - length, None)] = 1
    return ids * mask, mask


def _positions(mask: np.ndarray) -> np.ndarray:
    return np.maximum(mask.cumsum(axis=1) - 1, 0)


def _empty_past(session: ort.InferenceSession, batch: int) -> dict[str, np.ndarray]:
    past = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]
    return {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for i in past}


class _Reference:
    """The torch model, fed row by row without padding: what each row would give alone."""

    def __init__(self, model) -> None:
        self.model = model

    def logits(self, ids: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            return self.model(torch.tensor(ids[None])).logits[0].numpy()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_ragged_prefill_and_cached_steps_match_pytorch(model_type, side, tiny_torch, tiny_export):
    session = _session(tiny_export(model_type))
    reference = _Reference(tiny_torch(model_type))
    rng = np.random.default_rng(7)
    ids, mask = _padded(rng, side)
    names = [output.name for output in session.get_outputs()]
    feed = {"input_ids": ids, "attention_mask": mask, "position_ids": _positions(mask)}
    results = dict(zip(names, session.run(None, feed | _empty_past(session, len(ids))), strict=True))
    rows = [ids[row][mask[row] == 1] for row in range(len(ids))]
    assert np.isfinite(results["logits"]).all()
    for row, tokens in enumerate(rows):
        assert np.abs(results["logits"][row][mask[row] == 1] - reference.logits(tokens)).max() < 1e-4

    if side == "right" and model_type in WINDOWED:
        # A window is counted in slots, and the padding would lie between a row's prompt and its next token.
        return
    for _ in range(STEPS):
        step = rng.integers(3, 97, (len(ids), 1))
        mask = np.concatenate([mask, np.ones_like(step)], axis=1)
        rows = [np.concatenate([row, new]) for row, new in zip(rows, step, strict=True)]
        past = {n.replace("present", "past_key_values"): v for n, v in results.items() if n != "logits"}
        feed = {"input_ids": step, "attention_mask": mask, "position_ids": _positions(mask)[:, -1:]}
        results = dict(zip(names, session.run(None, feed | past), strict=True))
        for row, tokens in enumerate(rows):
            assert np.abs(results["logits"][row, -1] - reference.logits(tokens)[-1]).max() < 1e-4
