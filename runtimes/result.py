"""What a generation request returns."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class SpeculativeStats:
    """What drafting did for one request. Names and meanings are those of onnxruntime-genai's statistics."""

    rounds: int
    """Steps after the prompt; each verifies a draft and emits one token or more."""
    draft_tokens_proposed: int
    """Drafted tokens that a step read."""
    draft_tokens_evaluated: int
    """Of these, tokens looked at: those accepted, and the first that was not."""
    draft_tokens_accepted: int
    acceptance_rate: float
    """Accepted over evaluated; 0 before the first evaluated token."""
    avg_draft_tokens_per_round: float
    mean_emitted_tokens_per_round: float
    """1 without any accepted token."""
    effective_k: int
    """Drafted tokens per step at the end of the request: a running mean, rounded."""
    draft_forward_passes: int
    """Runs of the draft model; 0 for n-grams."""


@dataclass(frozen=True)
class Stats:
    """Token counts and speeds of one request; the rows of a batch share their times."""

    prompt_tokens: int
    new_tokens: int
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    """New tokens after the first, per second; 0 when there was only one."""
    speculative: SpeculativeStats | None = None
    """None when the request did not draft."""


@dataclass(frozen=True)
class Result:
    """One finished answer."""

    text: str
    """The new text, without special tokens and without the stop string."""
    token_ids: tuple[int, ...]
    """Every new token, an end-of-text token included."""
    finish_reason: FinishReason
    """``stop``: end-of-text token or stop string; ``length``: max_new_tokens reached."""
    stats: Stats
