"""What calibration runs a model on: token windows, from data that the evaluation never sees."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.calibration_overlap import Shingles
from onnxforge.compiler.calibration_records import RecordFiles, drawn
from onnxforge.compiler.calibration_self import sampled
from onnxforge.compiler.calibration_source import Corpus, SelfSampled, open_corpus
from onnxforge.compiler.calibration_tokens import RecordTokens, tokenizer_of
from onnxforge.compiler.calibration_use import CalibrationUse
from onnxforge.compiler.errors import CompileError
from onnxforge.compiler.eval_text import EvaluationText, cut, evenly, sentences
from onnxforge.compiler.graph_facts import graph_kind
from onnxforge.compiler.parity import batches
from onnxforge.compiler.served_source import renumbered_ids, served_source
from onnxforge.models.source import Source
from onnxforge.passes.base import PassRefused
from onnxforge.passes.token_counts import kept_tokens

_KEY = "onnxforge.calibration"
_BATCH = 8
_SENTENCES = 8
"""A sentence is short: as many make a sample of an encoder, where samples are counted."""
_EVERY = 1 << 40


@dataclass(frozen=True)
class CalibrationBatch:
    """Ids and mask of one run, int64 [B, S]; the mask is 0 where a row is padded."""

    ids: np.ndarray
    mask: np.ndarray


@dataclass
class CalibrationData:
    """The data of one compile, and what was used of it. Rides on the model, never saved."""

    source: Source
    corpus: Corpus
    uses: dict[tuple[int, int, int, int], CalibrationUse] = field(default_factory=dict)
    """By samples, tokens, seed and vocabulary."""
    shingles: Shingles = field(default_factory=Shingles)
    """Of the ids that were used, so that a text can be told which was calibrated on."""
    made: dict[tuple[int, int, int, int], np.ndarray] = field(default_factory=dict)
    """Sequences sampled from the model: made once, so that every step sees the same ones."""
    vocabulary: int = 0
    """The one whose ids the shingles are made of; see :attr:`CalibrationWork.key`."""


@dataclass(frozen=True)
class CalibrationWork:
    """Batches that can be taken again and again; each time they are read anew, and never all in memory."""

    model: ir.Model
    data: CalibrationData
    samples: int
    tokens: int
    seed: int

    @property
    def use(self) -> CalibrationUse:
        """What this is, as the report keeps it; :func:`calibration_batches` has written it down."""
        return self.data.uses[self.key]

    @property
    def key(self) -> tuple[int, int, int, int]:
        """What the ids depend on; the last: how many tokens a cut vocabulary has, else 0."""
        kept = kept_tokens(self.model)
        return self.samples, self.tokens, self.seed, 0 if kept is None else len(kept)

    def __iter__(self) -> Iterator[CalibrationBatch]:
        """The batches, the same each time."""
        source, corpus = served_source(self.data.source, self.model), self.data.corpus
        decoder = graph_kind(self.model) == "decoder"
        length = min(self.tokens, int(self.model.metadata_props.get("onnxforge.context_length", self.tokens)))
        budget = self.samples * length
        if isinstance(corpus, SelfSampled):
            return _each(self._made(decoder, length))
        if isinstance(corpus, RecordFiles):
            tokens = RecordTokens(source, whole=not decoder, given=partial(renumbered_ids, model=self.model))
            rows = (tokens.of(record, length) for record in drawn(corpus, budget, length, self.seed))
            return _each(rows) if decoder else _padded(rows)
        tokenizer = tokenizer_of(source)
        if tokenizer is None:
            return _each(_random(source, self.samples, length, self.seed))
        if decoder:
            windows, _ = cut(corpus, tokenizer, window=length, limit=self.samples)
            return _each(window.ids[0] for window in windows)
        found = batches(_sentences(corpus, budget), tokenizer, length)
        return (CalibrationBatch(batch.ids, batch.mask) for batch in found)

    def _made(self, decoder: bool, length: int) -> np.ndarray:
        if not decoder:
            raise PassRefused(
                "Calibration on `self` needs a model that writes text, and this one is an encoder: name a "
                "file or a data set, or leave the option out."
            )
        key = (self.samples, length, *self.key[2:])
        if key not in self.data.made:
            served = served_source(self.data.source, self.model)
            self.data.made[key] = sampled(self.model, served, self.samples, length, self.seed)
        return self.data.made[key]


def attach(model: ir.Model, source: Source, named: str | None = None) -> None:
    """Let the passes that need calibration find their data on ``model``; nothing is tokenized yet.

    Raises:
        RequestRefused: ``named`` is no calibration data; see :func:`calibration_source.open_corpus`.
    """
    model.meta[_KEY] = CalibrationData(source, open_corpus(named))


def data_of(model: ir.Model) -> CalibrationData | None:
    """The calibration data that was attached to ``model``, if any was."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, CalibrationData) else None


def uses_of(model: ir.Model) -> tuple[CalibrationUse, ...]:
    """What the steps that made ``model`` were calibrated on."""
    data = data_of(model)
    return tuple(data.uses.values()) if data is not None else ()


def calibration_batches(
    model: ir.Model, samples: int, tokens: int, *, seed: int = 0, used_by: str = ""
) -> CalibrationWork:
    """About ``samples`` x ``tokens`` tokens of the calibration data, in samples of at most ``tokens``.

    Of running text a decoder gets ``samples`` evenly spaced windows, an encoder as many sentences as give as
    many tokens; of records, as many as give as many tokens. Where the data holds less, all of it is used. A
    model without a tokenizer gets random ids, seeded. ``used_by`` is the text of the step, for the report.

    Raises:
        PassRefused: the data does not fit the model, or holds nothing.
        ValueError: the model came without its source, or without a vocabulary.
    """
    data = data_of(model)
    if data is None:
        raise ValueError("calibration needs the source of the model, which the driver attaches")
    work = CalibrationWork(model, data, samples, tokens, seed)
    try:
        use = data.uses.get(work.key) or _use(work)
    except CompileError as error:
        raise PassRefused(str(error)) from error
    data.uses[work.key] = replace(use, steps=tuple(dict.fromkeys(filter(None, (*use.steps, used_by)))))
    return work


def trial_batches(model: ir.Model, samples: int, tokens: int, *, used_by: str) -> list[CalibrationBatch]:
    """A little text, in memory, for a step that runs a model on it many times over.

    ``samples`` windows for a decoder, as many eights of sentences for an encoder. Raises what
    :func:`calibration_batches` does.
    """
    count = samples if graph_kind(model) == "decoder" else _SENTENCES * samples
    return list(calibration_batches(model, count, tokens, used_by=used_by))


def check_samples(step: str, samples: int, tokens: int) -> None:
    """Refuse to calibrate on nothing; ``step`` is the text form of the step.

    Raises:
        PassRefused: no sample, or samples of less than two tokens.
    """
    if samples < 1 or tokens < 2:
        raise PassRefused(f"{step}: needs at least 1 sample of 2 tokens")


def _use(work: CalibrationWork) -> CalibrationUse:
    """Read the data once through and write down what it is."""
    digest, count, total = hashlib.sha256(), 0, 0
    distinct: set[int] = set()
    if work.key[-1] != work.data.vocabulary:
        work.data.shingles, work.data.vocabulary = Shingles(), work.key[-1]
    for batch in work:
        for ids, mask in zip(batch.ids, batch.mask, strict=True):
            real = ids[mask.astype(bool)]
            digest.update(real.astype("<i8").tobytes())
            work.data.shingles.add(real)
            distinct.update(real.tolist())
            count, total = count + 1, total + len(real)
    if not total:
        raise PassRefused(f"Calibration: {work.data.corpus.name} gives not a single token to run on.")
    asked = work.samples * work.tokens
    return CalibrationUse(
        work.data.corpus.name, count, total, asked, digest.hexdigest(), work.seed, (), len(distinct)
    )


def _each(rows: Iterator[np.ndarray] | np.ndarray) -> Iterator[CalibrationBatch]:
    """One run per sample."""
    for row in rows:
        ids = row.astype(np.int64)[None]
        yield CalibrationBatch(ids, np.ones_like(ids))


def _padded(rows: Iterator[np.ndarray]) -> Iterator[CalibrationBatch]:
    """Eight samples a run, padded on the right."""
    waiting: list[np.ndarray] = []
    for row in rows:
        waiting.append(row)
        if len(waiting) == _BATCH:
            yield _batch(waiting)
            waiting = []
    if waiting:
        yield _batch(waiting)


def _batch(rows: Sequence[np.ndarray]) -> CalibrationBatch:
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return CalibrationBatch(ids, mask)


def _sentences(text: EvaluationText, budget: int) -> list[str]:
    """Sentences for about ``budget`` tokens, evenly spaced; lines where the text has no sentences."""
    pool = sentences(_EVERY, text) or [line.strip() for line in text.text.splitlines() if line.strip()]
    wanted = int(np.ceil(budget * 4 / np.mean([len(sentence) for sentence in pool])))
    return [pool[place] for place in evenly(len(pool), wanted)]


def _random(source: Source, samples: int, length: int, seed: int) -> Iterator[np.ndarray]:
    size = source.config.get("vocab_size")
    if not isinstance(size, int):
        raise ValueError(f"{source.ref}: neither a tokenizer nor a vocabulary size to calibrate with")
    return iter(np.random.default_rng(seed).integers(0, size, (samples, length)))
