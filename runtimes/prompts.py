"""What may be passed as a prompt, and how it becomes token ids that fit the context."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.errors import ContextOverflow, RequestError

Message = Mapping[str, object]
Prompt = str | Sequence[int] | Sequence[Message] | Int64s
Prompts = Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]] | Sequence[Int64s]
Truncate = Literal["left"]

DEFAULT_NEW_TOKENS = 256
_ONE_PROMPT = (str, Sequence, np.ndarray)


def is_batch(prompt: Prompt | Prompts) -> bool:
    """Whether this is a list of prompts: of texts, of token id lists or of chats."""
    if isinstance(prompt, str):
        return False
    if isinstance(prompt, np.ndarray):
        return prompt.ndim == 2
    if not isinstance(prompt, Sequence):
        raise RequestError(f"A prompt is a text, a chat or token ids, not {type(prompt).__name__}.")
    if len(prompt) == 0:
        raise RequestError("The prompt is empty; pass at least one token, message or text.")
    if not isinstance(prompt[0], _ONE_PROMPT):
        return False
    for row, item in enumerate(prompt):
        if not isinstance(item, _ONE_PROMPT):
            raise RequestError(
                f"Prompt {row} of the batch is a {type(item).__name__}; each is a text, a chat or token ids."
            )
    return True


def is_chat(prompt: Prompt) -> bool:
    """Whether this is a list of messages."""
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str)
    return listed and len(prompt) > 0 and all(isinstance(item, Mapping) for item in prompt)


def checked_tokens(prompt: Prompt, vocabulary: int) -> list[int]:
    """Token ids given by the caller, each inside the vocabulary. Raises RequestError."""
    items: list[object] = prompt.tolist() if isinstance(prompt, np.ndarray) else list(prompt)
    tokens: list[int] = []
    for item in items:
        if not isinstance(item, int | np.integer) or isinstance(item, bool) or not 0 <= item < vocabulary:
            raise RequestError(
                f"Token id {item!r:.60} in the prompt; pass whole numbers from 0 to {vocabulary - 1}, "
                "a text, or messages with a role and content."
            )
        tokens.append(int(item))
    return tokens


def fit_context(
    tokens: Sequence[int], new_tokens: int | None, context: int, truncate: Truncate | None
) -> tuple[list[int], int]:
    """The tokens to read and how many to write; with ``truncate="left"`` the oldest tokens give way.

    Raises RequestError for an empty prompt and ContextOverflow, with the numbers, when both do not fit.
    """
    if truncate not in (None, "left"):
        raise RequestError(f"truncate is {truncate!r}; pass None or 'left'.")
    if not tokens:
        raise RequestError("The prompt is empty; pass at least one token.")
    room = context - len(tokens)
    if truncate == "left":
        wanted = min(DEFAULT_NEW_TOKENS, context // 2) if new_tokens is None else new_tokens
        room = max(room, wanted) if wanted < context else room
    wanted = min(DEFAULT_NEW_TOKENS, max(room, 1)) if new_tokens is None else new_tokens
    if wanted > room:
        raise ContextOverflow(
            f"{len(tokens)} prompt tokens and {wanted} new ones exceed the model's context of {context}. "
            f"{_ways_to_fit(len(tokens), wanted, context, truncate)}."
        )
    return list(tokens[-(context - wanted) :]), wanted


def _ways_to_fit(prompt: int, wanted: int, context: int, truncate: Truncate | None) -> str:
    """What would help; nothing that was done already, or that would not be enough."""
    if wanted >= context:
        return f"Lower max_new_tokens to {context - min(prompt, context - 1)} or less"
    ways = [f"Shorten the prompt to {context - wanted} tokens"]
    if prompt < context:
        ways.append(f"lower max_new_tokens to {context - prompt}")
    if truncate is None:
        ways.append("drop the oldest prompt tokens with truncate='left' (`run --truncate`)")
    return ", or ".join(ways)
