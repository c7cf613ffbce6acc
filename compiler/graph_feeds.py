"""Feeding a graph by the names of its inputs: whole sequences, an empty cache."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort

from onnxforge.compiler.errors import CompileError
from onnxforge.runtimes.elements import ELEMENTS


class UnknownInput(CompileError):
    """A graph asks for an input that nothing here knows how to feed."""


def whole_sequence_feeds(
    inputs: Sequence[ort.NodeArg], ids: np.ndarray, mask: np.ndarray, where: str
) -> Mapping[str, np.ndarray]:
    """Every one of ``inputs`` by name, for int64 ``ids`` and ``mask`` [B, S]: positions count the real
    tokens, token types are zero, the cache is empty. ``where`` names the graph in errors.

    Raises:
        UnknownInput: an input that is none of these.
    """
    known = {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": np.maximum(mask.cumsum(axis=1) - 1, 0),
        "token_type_ids": np.zeros_like(ids),
    }
    feeds = {}
    for spec in inputs:
        if spec.name in known:
            feeds[spec.name] = known[spec.name]
        elif spec.name.startswith("past_key_values."):
            _, heads, _, width = spec.shape
            feeds[spec.name] = np.zeros((ids.shape[0], heads, 0, width), ELEMENTS[spec.type].storage)
        else:
            raise UnknownInput(f"{where}: the graph wants the input {spec.name!r}, which cannot be fed here.")
    return feeds
