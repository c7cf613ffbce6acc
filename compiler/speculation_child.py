"""Measures speculative decoding on one artifact, in a process of its own, with the runtime that users have.

Run as ``python -m onnxforge.compiler.speculation_child FOLDER THREADS auto|N``; a pickled
:class:`SpeculationReport` comes out on stdout.
"""

import os
import pickle
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from onnxforge.compiler.eval_text import calibration_text
from onnxforge.compiler.sample_prompts import SAMPLE_PROMPTS, SamplePrompt
from onnxforge.compiler.speculation_decision import best_length, decide, prefers
from onnxforge.compiler.speculation_replay import KnownAnswer, forecasts, runtime_curve
from onnxforge.compiler.speculation_types import DraftReport, SampleRun, SpeculationReport
from onnxforge.compiler.step_costs import CONTEXTS, MOST_ROWS, StepCosts, check_rows, measure_costs
from onnxforge.runtimes import Decoder, load
from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.result import Result
from onnxforge.runtimes.speculation import (
    DRAFT_MODEL,
    LAYER_SKIP,
    MOST_DRAFT_TOKENS,
    USUAL_DRAFT_TOKENS,
    DrafterName,
    Speculation,
    verifying_rows,
)

GROUNDED_TOKENS, OPEN_TOKENS = 64, 96
"""Of each sample answer, at most. Open answers are as long as people read them: the first words of one have
nothing to copy, and to judge by them alone would undersell drafting."""
_PLAIN_TOKENS = 16
"""Without drafts fewer tell the speed as well: every step costs the same."""
_PATIENCE = 5.0
"""Seconds after which no further round on the sample prompts starts."""
_MOST_ROUNDS = 3
_COMPARED = 16
"""Tokens of a prompt, and of steps behind it, on which two graphs are compared."""
_TURN = 2
"""Prompts after which the order of plain and drafting turns round: both classes see both orders."""


def main() -> None:
    """Measure what the command line names."""
    folder, threads, asked = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    channel = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # no library's print may stand in the answer
    report = measure(folder, threads, None if asked == "auto" else int(asked))
    with channel:
        pickle.dump(report, channel)


def measure(folder: Path, threads: int, asked: int | None) -> SpeculationReport:
    """Costs, consistency, forecast, real speed and decision; ``asked`` fixes the draft length.

    Raises:
        RequestError, ArtifactError: the artifact is no decoder that loads here.
    """
    started = time.perf_counter()
    with load(folder, threads=threads, verify="off") as model:
        assert isinstance(model, Decoder)
        text = _text(model)
        brought = _brought(model.manifest.speculation)
        costs = measure_costs(model.graph, text)
        rows = check_rows(model.graph, text, max(MOST_ROWS, verifying_rows(asked or 0)))
        _go_by(model, costs)
        samples = _fitting(model) if rows.is_exact else []
        _round(model, samples, asked or USUAL_DRAFT_TOKENS)
        lengths = sorted({*range(1, MOST_ROWS), asked or USUAL_DRAFT_TOKENS})
        found = forecasts([sample.answer() for sample in samples], costs, lengths)
        length = asked if asked is not None else best_length(found)
        runs = _timed(model, samples, length, asked or USUAL_DRAFT_TOKENS) if found else ()
        said = _logits(model, text) if brought and runs else np.zeros((0, 0), np.float32)
    forecast = next((f for f in found if f.draft_tokens == length), None)
    enabled, reason = decide(rows, forecast, runs, asked)
    drafts: list[DraftReport] = []
    best = runs
    for drafter in brought if runs else ():
        took, logits = _drafted_by(drafter, folder, threads, text, costs, length)
        is_equal = np.array_equal(logits, said)
        chosen, why = prefers(drafter, is_equal, took, best, enabled)
        drafts.append(DraftReport(drafter, took, is_equal, chosen, why))
        enabled, reason = (True, why) if chosen else (enabled, f"{reason}; {why}")
        best = took if chosen else best
    return SpeculationReport(
        costs=costs,
        rows=rows,
        forecasts=found,
        samples=runs,
        draft_tokens=length,
        asked=asked is not None,
        enabled=enabled,
        reason=reason,
        seconds=time.perf_counter() - started,
        drafts=tuple(drafts),
    )


def _brought(known: Speculation | None) -> tuple[DrafterName, ...]:
    """What the artifact can draft by, beside n-grams."""
    if known is None:
        return ()
    found: tuple[tuple[DrafterName, str | None], ...] = (
        (LAYER_SKIP, known.draft_graph),
        (DRAFT_MODEL, known.draft_model),
    )
    return tuple(name for name, path in found if path is not None)


def _drafted_by(
    drafter: DrafterName, folder: Path, threads: int, text: Int64s, costs: Sequence[StepCosts], length: int
) -> tuple[tuple[SampleRun, ...], Floats]:
    """The same prompts, with drafts by what the artifact brings; and :func:`_logits` of the graph that
    verifies them."""
    with load(folder, threads=threads, verify="off", draft=drafter) as model:
        assert isinstance(model, Decoder)
        _go_by(model, costs)
        samples = _fitting(model)
        _round(model, samples, length)
        return _timed(model, samples, length, length), _logits(model, text)


def _logits(model: Decoder, text: Int64s) -> Floats:
    """float32 [n, vocabulary]: a prompt's last logits, and those of a few even steps behind it."""
    state = model.new_state(min_rows=2)
    prompt, behind = text[:_COMPARED], text[_COMPARED : 2 * _COMPARED]
    parts = [state.prompt([prompt]).copy()]
    for start in range(0, len(behind) - 1, 4):
        parts.append(state.step(behind[None, start : start + 4])[0].copy())
    return np.concatenate(parts)


@dataclass
class _Sample:
    """A sample prompt as tokens, and what was measured on it."""

    prompt: SamplePrompt
    ids: list[int]
    plain: list[Result] = field(default_factory=list)
    drafted: list[Result] = field(default_factory=list)

    def answer(self) -> KnownAnswer:
        """What the latest run with drafts said."""
        said = self.drafted[-1].token_ids
        return KnownAnswer(self.prompt.name, self.prompt.grounded, tuple(self.ids), said)

    def run(self) -> SampleRun | None:
        """What was measured; None where an answer ended with its first token."""
        plain, drafted = self.plain[0], self.drafted[0]
        if min(len(plain.token_ids), len(drafted.token_ids)) < 2 or drafted.stats.speculative is None:
            return None
        stats = drafted.stats.speculative
        count = min(len(plain.token_ids), len(drafted.token_ids))
        return SampleRun(
            name=self.prompt.name,
            grounded=self.prompt.grounded,
            prompt_tokens=len(self.ids),
            tokens=len(drafted.token_ids),
            drafted=stats.draft_tokens_proposed,
            accepted=stats.draft_tokens_accepted,
            steps=stats.rounds,
            speculative_rate=_rate(self.drafted),
            plain_rate=_rate(self.plain),
            plain_agrees=plain.token_ids[:count] == drafted.token_ids[:count],
        )


def _timed(
    model: Decoder, samples: Sequence[_Sample], length: int, first_length: int
) -> tuple[SampleRun, ...]:
    """More rounds at ``length``; the first one counts where it had that length."""
    deadline = time.perf_counter() + _PATIENCE
    rounds = 1
    if length != first_length:
        for sample in samples:
            sample.drafted.clear()
        _round(model, samples, length)
        rounds += 1
    while rounds < _MOST_ROUNDS and time.perf_counter() < deadline:
        _round(model, samples, length)
        rounds += 1
    return tuple(run for sample in samples if (run := sample.run()) is not None)


def _round(model: Decoder, samples: Sequence[_Sample], length: int) -> None:
    """Every sample prompt without and with drafts, in turns."""
    for place, sample in enumerate(samples):
        for drafting in (False, True) if place % 4 < _TURN else (True, False):
            if drafting:
                sample.drafted.append(_generate(model, sample.ids, _new_tokens(sample.prompt), length))
            else:
                sample.plain.append(_generate(model, sample.ids, _PLAIN_TOKENS, 0))


def _generate(model: Decoder, ids: Sequence[int], count: int, drafts: int) -> Result:
    """A greedy answer; ``drafts`` 0 decodes one row a step."""
    rows = 2 if drafts else 1
    return model.generate(ids, max_new_tokens=count, do_sample=False, max_draft_tokens=drafts, min_rows=rows)


def _go_by(model: Decoder, costs: Sequence[StepCosts]) -> None:
    """Have requests choose what to verify by the costs that were measured, as they will in the artifact."""
    known = Speculation(False, 0, min_rows=1, step_cost=runtime_curve(costs))
    model.manifest = replace(model.manifest, speculation=known)


def _new_tokens(prompt: SamplePrompt) -> int:
    return GROUNDED_TOKENS if prompt.grounded else OPEN_TOKENS


def _rate(results: Sequence[Result]) -> float:
    return statistics.median(result.stats.decode_tokens_per_s for result in results)


def _fitting(model: Decoder) -> list[_Sample]:
    """The sample prompts that the context holds with their answers; none where the model has no tokenizer."""
    found = []
    for prompt in SAMPLE_PROMPTS:
        chat = model.chat_template is not None
        ids = model.prompt_tokens(
            [{"role": "user", "content": prompt.text}] if chat else prompt.text + "\n\n"
        )
        if len(ids) + _new_tokens(prompt) <= model.manifest.context_length:
            found.append(_Sample(prompt, ids))
    return found


def _text(model: Decoder) -> Int64s:
    """int64 [n] tokens to time steps on: text that the evaluation never sees."""
    needed = min(max(CONTEXTS) + 1 + MOST_DRAFT_TOKENS, model.manifest.context_length)
    ids = model.tokenizer.encode(calibration_text().text[: 16 * needed], add_special_tokens=True)
    return np.resize(np.array(ids or [0], np.int64), needed)


if __name__ == "__main__":
    main()
