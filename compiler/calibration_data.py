"""What calibration runs a model on: token windows, from a text that the evaluation never sees."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import calibration_text, cut, sentences
from onnxforge.compiler.parity import batches
from onnxforge.models.source import Source

_KEY = "onnxforge.calibration"
_SEED = 0


@dataclass(frozen=True)
class CalibrationBatch:
    """Ids and mask of one run, int64 [B, S]; the mask is 0 where a row is padded."""

    ids: np.ndarray
    mask: np.ndarray


def attach(model: ir.Model, source: Source) -> None:
    """Let the passes that need calibration find their data on ``model``; nothing is tokenized yet."""
    model.meta[_KEY] = source


def calibration_batches(model: ir.Model, samples: int, tokens: int) -> list[CalibrationBatch]:
    """``samples`` windows of ``tokens`` tokens (encoders: as many sentences) of the calibration text.

    A model without a tokenizer gets random ids, seeded.

    Raises:
        ValueError: the model came without its source, or without a vocabulary.
    """
    source = model.meta.get(_KEY)
    if not isinstance(source, Source):
        raise ValueError("calibration needs the source of the model, which the driver attaches")
    length = min(tokens, int(model.metadata_props.get("onnxforge.context_length", tokens)))
    stored = source.sidecars.get("tokenizer.json")
    if stored is None:
        return _random(source, samples, length)
    tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    if any(value.name == "past_key_values.0.key" for value in model.graph.inputs):
        windows, _ = cut(calibration_text(), tokenizer, window=length, limit=samples)
        return [CalibrationBatch(window.ids, np.ones_like(window.ids)) for window in windows]
    found = batches(sentences(samples, calibration_text()), tokenizer, length)
    return [CalibrationBatch(batch.ids, batch.mask) for batch in found]


def _random(source: Source, samples: int, length: int) -> list[CalibrationBatch]:
    size = source.config.get("vocab_size")
    if not isinstance(size, int):
        raise ValueError(f"{source.ref}: neither a tokenizer nor a vocabulary size to calibrate with")
    rng = np.random.default_rng(_SEED)
    ids = rng.integers(0, size, (samples, 1, length))
    return [CalibrationBatch(row, np.ones_like(row)) for row in ids]
