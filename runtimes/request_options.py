"""The options that a request for text may carry."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from onnxforge.runtimes.interruption import CancelToken
from onnxforge.runtimes.prompts import Truncate

if TYPE_CHECKING:
    from onnxforge.runtimes.decoder import Decoder

NOT_GENERATION = (
    "deadline",
    "cancel",
    "truncate",
    "max_draft_tokens",
    "prompt_lookup_num_tokens",
    "assistant_model",
    "min_rows",
)
"""Those that say nothing about which token comes next."""


class Options(TypedDict, total=False):
    """Options of one request. What is absent or None comes from generation_config.json, then transformers."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    eos_token_id: int | Sequence[int] | None
    seed: int | None
    stop: str | Sequence[str] | None
    """The text ends before the first of these."""
    deadline: float | None
    """Seconds from now; then the request ends with what it has, in the middle of a prompt too."""
    cancel: CancelToken | None
    truncate: Truncate | None
    """``left`` drops the oldest prompt tokens instead of raising ContextOverflow."""
    max_draft_tokens: int | None
    """Draft so many tokens per step at most (speculative decoding); 0: none. Absent: the artifact's."""
    prompt_lookup_num_tokens: int | None
    """transformers' name for `max_draft_tokens` with n-gram drafts."""
    assistant_model: "Decoder | None"
    """The decoder that drafts, with the same tokenizer; absent: the one given to `load`, else n-grams."""
    min_rows: int | None
    """2: the tokens that drafting gives, without it: every run reads an even number of tokens."""
