"""What a reader of a report must know of the calibration data: too little, or the very text of the test."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_data import data_of
from onnxforge.compiler.calibration_source import SelfSampled
from onnxforge.compiler.calibration_tokens import tokenizer_of
from onnxforge.compiler.eval_text import calibration_text, evaluation_text
from onnxforge.compiler.served_source import served_source
from onnxforge.models.source import Source

_OF_CALIBRATION, _OF_TEST = 0.25, 0.1
"""Shares that calibration data may have in common with the evaluation text, and this with that, by chance."""


def calibration_notes(model: ir.Model | None, source: Source, text: Path | None) -> tuple[str, ...]:
    """Sentences for the report about what ``model`` was calibrated on, given the evaluation text ``text``."""
    data = data_of(model) if model is not None else None
    if data is None or not data.uses:
        return ()
    notes = [
        f"Calibration had {use.tokens:,} tokens, of {use.asked_tokens:,} asked for: all that "
        f"{use.source} holds."
        for use in data.uses.values()
        if use.is_short
    ]
    tokenizer = tokenizer_of(served_source(source, model)) if model is not None else None
    apart = isinstance(data.corpus, SelfSampled) or (text is None and data.corpus == calibration_text())
    if tokenizer is None or apart:
        return tuple(notes)
    judged = evaluation_text(text)
    ids = tokenizer.encode(judged.text, add_special_tokens=False).ids
    of_calibration, of_test = data.shingles.shared(np.asarray(ids, dtype=np.int64))
    if of_calibration >= _OF_CALIBRATION or of_test >= _OF_TEST:
        notes.append(
            f"**Calibrated on the test**: {of_calibration:.0%} of the calibration data "
            f"({data.corpus.name}) is also in the evaluation text {judged.name}, and makes {of_test:.0%} of "
            "it, so the quality below flatters the artifact. Measure on another text with --eval-text, or "
            "calibrate on another."
        )
    return tuple(notes)
