"""How a tokenizer reads and writes text: everything that the graph of `add-text-io` needs to know of it."""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.text_rules"
CUT_OFF = 4
"""Added to the kind of a character that is a word of its own, cut off before words are looked for."""


class Cut(StrEnum):
    """The regular expressions for words that a graph can follow; see :mod:`passes.text_cutting`."""

    GPT2 = "gpt2"
    CL100K = "cl100k"


@dataclass(frozen=True)
class SpecialToken:
    """A token that is looked for in the text itself, before words are cut."""

    text: str
    id: int


@dataclass(frozen=True, eq=False)
class TextRules:
    """Byte-level BPE, as tables.

    Whoever makes one sees to it that special tokens cannot overlap in a text (one may begin another), and
    that merges use what earlier merges made: the graph does not ask.
    """

    cut: Cut
    number_group: int
    """How many numbers make one word at most; read by :attr:`Cut.CL100K` only."""
    kinds: np.ndarray
    """uint8 [0x110000]: 0 other, 1 letter, 2 number, 3 space, of every code point; plus :data:`CUT_OFF`."""
    byte_ids: np.ndarray
    """int64 [256]: the token of each byte, -1 where the vocabulary has none."""
    merges: np.ndarray
    """int64 [M, 3]: left, right and merged token, by rank."""
    specials: tuple[SpecialToken, ...]
    before: tuple[int, ...]
    """What the post-processor puts before a text, such as the beginning-of-text token."""
    after: tuple[int, ...]
    shown: tuple[bytes, ...]
    """What each token shows in a decoded text: nothing for special tokens."""


def attach_rules(model: ir.Model, rules: TextRules) -> None:
    """Let `add-text-io` find the rules on ``model``; they are never saved."""
    model.meta[_KEY] = rules


def rules_of(model: ir.Model) -> TextRules | None:
    """The rules that were attached to ``model``."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, TextRules) else None
