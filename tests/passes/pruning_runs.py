"""Runs a graph before and after pruning, and takes units out of it without making it smaller."""

import numpy as np
import onnx_ir as ir
from attention_runs import Conversation, session

from onnxforge.passes.input_moments import InputMoments, leave_moments
from onnxforge.passes.prune_groups import PruneGroup, Unit, prune_groups
from onnxforge.passes.unit_scores import readers_of

TOKENS = np.random.default_rng(1).integers(3, 97, 14).tolist()


def answer(model: ir.Model) -> np.ndarray:
    """Of a decoder in pieces, over its cache."""
    if any(value.name.startswith("past") for value in model.graph.inputs):
        speaker = Conversation(model, 1)
        return np.concatenate([speaker.say([TOKENS[i:j]])[0] for i, j in ((0, 6), (6, 7), (7, 14))])
    ids = np.array([TOKENS])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    return session(model).run(None, {value.name: feeds[value.name] for value in model.graph.inputs})[0][0]


def groups(model: ir.Model, unit: Unit) -> tuple[PruneGroup, ...]:
    return prune_groups(model.graph).of(unit)


def silenced(model: ir.Model, unit: Unit, gone: dict[str, set[int]]) -> ir.Model:
    """``model`` with the rows that read the units ``gone``, by group, at zero: what removing them means."""
    for group in groups(model, unit):
        for reader in readers_of(group) if group.name in gone else ():
            matrix = reader.matrix().copy()
            matrix[np.isin(group.labels_of(reader.values[0]), list(gone[group.name]))] = 0
            reader.weight.const_value = ir.tensor(matrix, name=reader.weight.name)
    return model


def with_moments(model: ir.Model, seed: int = 0) -> ir.Model:
    """Moments of random inputs on everything that a group reads."""
    rng = np.random.default_rng(seed)
    for group in prune_groups(model.graph).groups:
        for reader in readers_of(group):
            width = len(reader.matrix())
            for value in reader.values:
                seen = rng.standard_normal((4 * width, width)) @ rng.standard_normal((width, width))
                leave_moments(value, InputMoments((seen.T @ seen).astype(np.float32), len(seen)))
    return model


def weight_elements(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values())
