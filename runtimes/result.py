"""What a generation request returns."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled", "deadline"]


@dataclass(frozen=True)
class Stats:
    """Token counts and speeds of one request; the rows of a batch share their times."""

    prompt_tokens: int
    new_tokens: int
    time_to_first_token_s: float
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    """New tokens after the first, per second; 0 when there was only one."""


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
