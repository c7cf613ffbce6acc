"""Where along the depth an artifact drifts from its source: one number per layer.

Fusion renames and removes the values in between, but two kinds of value survive in every form of a graph,
once per layer and in order::

    decoder   present.N.key, present.N.value       graph outputs already
    encoder   the output of the N-th attention     made an output for this run, in memory only
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.cache_scales import cache_scales
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.watched_values import watched_values

_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_BEST_DB = 160.0
"""Reported for equal values: above what float32 can resolve, and finite for JSON."""


@dataclass(frozen=True)
class LayerError:
    """The drift of one layer."""

    layer: int
    sqnr_db: float
    """Signal to noise, 10 log10(sum ref^2 / sum (ref - ours)^2); 160 when equal."""
    max_relative: float
    """Largest absolute difference over the reference's largest magnitude."""


def error_by_layer(
    reference: GraphSession, candidate: GraphSession, ids: np.ndarray, their_ids: np.ndarray | None = None
) -> tuple[LayerError, ...]:
    """Run both graphs once on ``ids`` [1, S] and compare what they hold per layer.

    ``their_ids`` are the reference's for the same tokens, where its vocabulary is another one.

    Empty when the two graphs do not have the same number of probes (an imported graph whose attention was
    never one operator), or where layers were removed.
    """
    probe = _present if reference.is_decoder and candidate.is_decoder else _attention_outputs
    theirs, ours = probe(reference, ids if their_ids is None else their_ids), probe(candidate, ids)
    if theirs.keys() != ours.keys():
        return ()
    return tuple(
        _drift(layer, theirs[layer], ours[layer])
        for layer in sorted(theirs)
        if theirs[layer].shape == ours[layer].shape
    )


def _present(session: GraphSession, ids: np.ndarray) -> Mapping[int, np.ndarray]:
    names = [name for name in session.outputs if name.startswith("present.")]
    values = session.run(ids, fetch=names)
    layers: dict[int, list[np.ndarray]] = {}
    scales = cache_scales(session.folder / session.manifest.graph)
    for name in sorted(names):
        value = values[name] * scales[name] if name in scales else values[name]
        found = re.fullmatch(r"present\.(\d+)\.(?:key|value)", name)
        if found:
            layers.setdefault(int(found[1]), []).append(value.ravel())
    return {layer: np.concatenate(parts) for layer, parts in layers.items()}


def _attention_outputs(session: GraphSession, ids: np.ndarray) -> Mapping[int, np.ndarray]:
    values = watched_values(session, _attentions, ids).values()
    return {layer: _token_major(value).ravel() for layer, value in enumerate(values)}


def _attentions(model: ir.Model) -> list[ir.Value]:
    return [node.outputs[0] for node in model.graph if node.op_type in _ATTENTION]


def _token_major(value: np.ndarray) -> np.ndarray:
    """Heads side by side, [B, S, H * D], whether the operator speaks [B, H, S, D] or that already."""
    if value.ndim != 4:
        return value
    batch, _, length, _ = value.shape
    return value.transpose(0, 2, 1, 3).reshape(batch, length, -1)


def _drift(layer: int, reference: np.ndarray, candidate: np.ndarray) -> LayerError:
    signal = reference.astype(np.float64)
    noise = signal - candidate
    power, error = float(np.dot(signal, signal)), float(np.dot(noise, noise))
    db = _BEST_DB if error == 0.0 else min(_BEST_DB, 10 * math.log10(max(power, 1e-300) / error))
    scale = float(np.abs(signal).max())
    return LayerError(layer, db, float(np.abs(noise).max()) / max(scale, 1e-30))
