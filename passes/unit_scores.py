"""How much each unit of a group matters, by one of several measures."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant, extents
from onnxforge.passes.input_gradients import gradients_of
from onnxforge.passes.input_moments import InputMoments, moments_of, together
from onnxforge.passes.prune_groups import PruneGroup
from onnxforge.passes.surgeon import Removal, cheapest_removal

SURGEON: Final = "surgeon"


@dataclass(frozen=True, eq=False)
class ReaderFacts:
    """A matrix that loses rows, and what was measured of all that it multiplies."""

    weight: ir.Value
    values: tuple[ir.Value, ...]

    def moments(self) -> np.ndarray | None:
        """H, float32 [K, K]; None where an input was never measured."""
        found = [moments_of(value) for value in self.values]
        known = [item for item in found if isinstance(item, InputMoments)]
        return together(known) if len(known) == len(found) else None

    def matrix(self) -> np.ndarray:
        """float32 [K, N]."""
        tensor = constant(self.weight)
        assert tensor is not None
        return np.asarray(tensor.numpy(), dtype=np.float32)


def readers_of(group: PruneGroup) -> tuple[ReaderFacts, ...]:
    """The matrices behind ``group``, each once, however many MatMuls share it."""
    found: dict[ir.Value, dict[ir.Value, None]] = {}
    for node in group.readers():
        data, weight = node.inputs[0], node.inputs[1]
        assert data is not None
        assert weight is not None
        found.setdefault(weight, {})[data] = None
    return tuple(ReaderFacts(weight, tuple(values)) for weight, values in found.items())


def removal(group: PruneGroup, score: str, count: int) -> Removal:
    """The ``count`` units of ``group`` that matter least by ``score``, and what their loss costs.

    Raises:
        Unmeasured: the score needs what no step has measured.
    """
    if score == SURGEON:
        moments, matrix, labels = _stacked(group)
        return cheapest_removal(moments, matrix, labels, count, group.classes)
    worth = SCORES[score](group)
    by_class = worth.reshape(group.classes, -1)
    order = np.argsort(by_class, axis=1, kind="stable")[:, : count // group.classes]
    chosen = (order + np.arange(group.classes)[:, None] * by_class.shape[1]).T.reshape(-1)
    costs = tuple(float(cost) for cost in np.cumsum(worth[chosen]))
    return Removal(tuple(int(unit) for unit in chosen), costs, float(worth.sum()))


class Unmeasured(Exception):
    """A value that a score needs to know about and that no step has measured."""


def _stacked(group: PruneGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments [K, K], matrices [K, N] side by side, and labels [K] of all that reads the group."""
    readers = readers_of(group)
    values = {value: None for reader in readers for value in reader.values}
    found = [_measured(value) for value in values]
    matrix = np.hstack([reader.matrix() for reader in readers])
    return together(found), matrix, group.labels_of(readers[0].values[0])


def _measured(value: ir.Value) -> InputMoments:
    found = moments_of(value)
    if found is None:
        raise Unmeasured(f"{value.name!r} has no moments; put `correlate-inputs` before this pass")
    return found


def _by_unit(group: PruneGroup, value: ir.Value, entries: np.ndarray) -> np.ndarray:
    """float64 [units]: the sums of ``entries`` [K] by the units of ``value``."""
    labels = group.labels_of(value)
    mine = labels >= 0
    return np.bincount(labels[mine], weights=entries[mine], minlength=group.units)


def _magnitude(group: PruneGroup) -> np.ndarray:
    """Sum of squares of all weights of a unit."""
    total = np.zeros(group.units)
    for axis in group.weights():
        tensor = constant(axis.value)
        assert tensor is not None
        squares = np.square(np.asarray(tensor.numpy(), dtype=np.float64))
        sizes = extents(tensor)
        others = tuple(i for i in range(len(sizes)) if i - len(sizes) != axis.axis)
        mine = axis.labels >= 0
        total += np.bincount(axis.labels[mine], weights=squares.sum(axis=others)[mine], minlength=group.units)
    return total


def _wanda(group: PruneGroup) -> np.ndarray:
    """Power of an input times the squares of its row, summed (Sun et al. 2023, 2306.11695, by rows)."""
    total = np.zeros(group.units)
    for reader in readers_of(group):
        squares = np.square(reader.matrix().astype(np.float64)).sum(axis=1)
        for value in reader.values:
            total += _by_unit(group, value, squares * _measured(value).powers())
    return total


def _first_order(group: PruneGroup) -> np.ndarray:
    """The loss that setting the unit to zero is expected to cost (Molchanov et al. 2019, 1906.10771)."""
    total = np.zeros(group.units)
    for value in {value: None for reader in readers_of(group) for value in reader.values}:
        found = gradients_of(value)
        if found is None:
            raise Unmeasured(f"{value.name!r} has no gradients; put `measure-gradients` before this pass")
        total += _by_unit(group, value, found.importance.astype(np.float64))
    return total


def _random(group: PruneGroup) -> np.ndarray:
    """A fixed shuffle by the group's name: what every other score has to beat."""
    return np.random.default_rng(zlib.crc32(group.name.encode())).random(group.units)


SCORES: Mapping[str, Callable[[PruneGroup], np.ndarray]] = {
    "wanda": _wanda,
    "magnitude": _magnitude,
    "first-order": _first_order,
    "random": _random,
}


def score_names() -> Sequence[str]:
    """What a pass may be told to choose by."""
    return (SURGEON, *SCORES)
