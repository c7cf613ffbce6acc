"""Calibration text as distillation reads it: batches to learn from, and some that are held out."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.calibration_data import CalibrationBatch, calibration_batches
from onnxforge.compiler.eval_text import evenly
from onnxforge.compiler.torch_feeds import torch_feeds
from onnxforge.passes.base import PassRefused

_HELD_OUT, _MOST = 8, 4
"""One batch in so many is held out, up to so many batches."""


@dataclass(frozen=True, eq=False)
class TextBatch:
    """Some rows of text that run together."""

    batch: CalibrationBatch

    @property
    def mask(self) -> torch.Tensor:
        """int64 [B, S]: 1 where a token is real."""
        return torch.from_numpy(self.batch.mask)

    def feeds(self, graph: ir.Graph) -> dict[str, torch.Tensor]:
        """For every input of ``graph``: student and teacher may differ in their caches."""
        return torch_feeds(graph, self.batch)


@dataclass(frozen=True, eq=False)
class DistillationText:
    """What a student learns from, and what tells whether it did."""

    learned: tuple[TextBatch, ...]
    held_out: tuple[TextBatch, ...]
    digest: str
    """sha256 of all token ids."""

    def at_most(self, count: int) -> "DistillationText":
        """Up to ``count`` of the batches to learn from, evenly spaced, one at least; and what is held out, of
        which a quarter as many."""
        learned = [self.learned[place] for place in evenly(len(self.learned), max(count, 1))]
        return DistillationText(tuple(learned), self.held_out[: max(count // 4, 1)], self.digest)


def distillation_text(
    model: ir.Model, samples: int, tokens: int, *, rows: int, seed: int, used_by: str
) -> DistillationText:
    """The calibration data of ``model``, ``rows`` windows a batch; one in eight is held out, up to four.

    Raises:
        PassRefused: the data makes fewer than two batches.
    """
    work = calibration_batches(model, samples, tokens, seed=seed, used_by=used_by)
    batches = [TextBatch(batch) for batch in _grouped(work, rows)]
    if len(batches) < 2:
        raise PassRefused(
            f"{used_by}: the calibration data makes {len(batches)} batch of {rows} samples of {tokens} "
            "tokens; two are the least, one of them held out. Take more samples or more text."
        )
    every = max(_HELD_OUT, -(-len(batches) // _MOST))
    places = set(range(len(batches) - 1, 0, -every))
    return DistillationText(
        tuple(batch for place, batch in enumerate(batches) if place not in places),
        tuple(batch for place, batch in enumerate(batches) if place in places),
        work.use.ids_sha256,
    )


def _grouped(batches: Iterable[CalibrationBatch], rows: int) -> Iterator[CalibrationBatch]:
    """Neighbours of one length together, up to ``rows`` rows; batches that are larger stay as they are."""
    waiting: list[CalibrationBatch] = []
    for batch in batches:
        full = sum(len(item.ids) for item in waiting) + len(batch.ids) > rows
        if waiting and (full or waiting[0].ids.shape[1] != batch.ids.shape[1]):
            yield _joined(waiting)
            waiting = []
        waiting.append(batch)
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[CalibrationBatch]) -> CalibrationBatch:
    ids = np.concatenate([batch.ids for batch in batches])
    return CalibrationBatch(ids, np.concatenate([batch.mask for batch in batches]))
