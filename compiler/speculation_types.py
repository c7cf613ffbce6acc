"""What was measured of speculative decoding in one compile, and what follows from it."""

from dataclasses import dataclass

from onnxforge.compiler.step_costs import RowConsistency, StepCosts
from onnxforge.runtimes.speculation import DrafterName


@dataclass(frozen=True)
class SampleRun:
    """One sample prompt: how it was answered with drafts and, as far as it was timed, without."""

    name: str
    grounded: bool
    prompt_tokens: int
    tokens: int
    """New tokens, speculative; the first of them comes from the prompt's own run."""
    drafted: int
    accepted: int
    steps: int
    """Runs of the model after the prompt's."""
    speculative_rate: float
    """Tokens per second after the first one, median over rounds."""
    plain_rate: float
    """The same without drafts, one row a step."""
    plain_agrees: bool
    """Whether decoding by one row gave the same tokens, as far as it went."""


@dataclass(frozen=True)
class ClassForecast:
    """What one draft length is expected to do on one class of prompts."""

    tokens_per_step: float
    rows_per_step: float
    speed: float
    """Tokens per second over those of one-row decoding."""


@dataclass(frozen=True)
class Forecast:
    """The expectation for one draft length."""

    draft_tokens: int
    grounded: ClassForecast
    open: ClassForecast


@dataclass(frozen=True)
class DraftReport:
    """The same sample prompts, drafted for by what the artifact brings: the model itself without some of its
    layers, or a smaller one."""

    drafter: DrafterName
    samples: tuple[SampleRun, ...]
    is_equal: bool
    """Whether the graph that verifies gives bit for bit the logits of the plain one: that with a switch while
    it is off, and the plain one itself."""
    chosen: bool
    reason: str
    """Why requests go by it or not: a sentence for people."""

    def measured(self, grounded: bool) -> float | None:
        """Speed over one-row decoding on one class of sample prompts."""
        return measured_speed(self.samples, grounded)


@dataclass(frozen=True)
class SpeculationReport:
    """Everything that led to the decision, and the decision."""

    costs: tuple[StepCosts, ...]
    rows: RowConsistency
    forecasts: tuple[Forecast, ...]
    """By draft length, from 1; empty where the rows are not consistent or the prompts do not fit."""
    samples: tuple[SampleRun, ...]
    draft_tokens: int
    """The length that was chosen or asked for; 0 where there is none."""
    asked: bool
    """Whether the length was asked for by number."""
    enabled: bool
    reason: str
    """Why it is on or off: a sentence for people."""
    seconds: float
    """What all of this added to the compile."""
    drafts: tuple[DraftReport, ...] = ()
    """Of everything that the artifact brings to draft; the last one chosen is the default."""

    @property
    def forecast(self) -> Forecast | None:
        """The expectation for the chosen length."""
        return next((f for f in self.forecasts if f.draft_tokens == self.draft_tokens), None)

    def measured(self, grounded: bool) -> float | None:
        """Speed over one-row decoding on one class of sample prompts: the ratio of pooled rates."""
        return measured_speed(self.samples, grounded)


def measured_speed(samples: tuple[SampleRun, ...], grounded: bool) -> float | None:
    """Time that the class's tokens take without drafts over the time that they take with them.

    None where no sample of the class made more than one token.
    """
    counted = [(s.tokens - 1, s) for s in samples if s.grounded == grounded and s.tokens > 1]
    if not counted:
        return None
    plain = sum(count / s.plain_rate for count, s in counted)
    return plain / sum(count / s.speculative_rate for count, s in counted)
