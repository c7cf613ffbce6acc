"""The text a model is judged on, and the windows it is cut into.

The default text ships with Python itself, so every machine has it: the help topics of ``pydoc_data.topics``.
Topics in sorted order, those at even positions are the evaluation half; the rest is for calibration. The
topics quote one another, so the calibration half leaves out every paragraph that the evaluation half holds:
a model calibrated on one has not seen the other.
"""

import hashlib
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.errors import CompileError

_PARAGRAPH = re.compile(r"\n[ \t]*\n")
_SENTENCE_WORDS = range(4, 40)


class EvaluationError(CompileError):
    """The text or the model cannot be evaluated as asked: what was found, and what to do."""


@dataclass(frozen=True)
class EvaluationText:
    """A text with a name and a digest, so that a perplexity can be repeated elsewhere."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Digest of the UTF-8 bytes, in hex."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class Protocol:
    """Everything a perplexity depends on besides the model. Never compare numbers across protocols."""

    text: str
    sha256: str
    window: int
    stride: int
    windows: int
    windows_in_text: int
    prefix: tuple[int, ...]
    """Ids the tokenizer puts before every text (BOS); each window starts with them. Empty for none."""
    scored_tokens: int
    dropped_tokens: int = 0
    """Tokens behind the last window: windows are full, as llama-perplexity's, so a tail may stay over."""
    unscored: int = 0
    """Tokens at the start of every window that are context only; llama-perplexity takes half the window."""
    tokens_per_run: int = 0
    """The window goes through the cache in runs of so many tokens; 0: in one run from an empty cache."""

    def sentence(self) -> str:
        """The protocol as one line of a report."""
        bos = f"each window starts with ids {list(self.prefix)}" if self.prefix else "no BOS"
        tail = f", the last {self.dropped_tokens} left out" if self.dropped_tokens else ""
        context = f", the first {self.unscored} of each unscored" if self.unscored else ""
        runs = f", decoded {self.tokens_per_run} tokens a run" if self.tokens_per_run else ""
        part = "all" if self.windows == self.windows_in_text else f"{self.windows} evenly spaced"
        return (
            f"{self.text} (sha256 {self.sha256[:12]}), {part} of {self.windows_in_text} windows of "
            f"{self.window} tokens, stride {self.stride}, {bos}{context}, {self.scored_tokens} tokens "
            f"scored{tail}{runs}"
        )


@dataclass(frozen=True)
class Window:
    """One run of the model: ``ids`` int64 [1, S], scored from target position ``first`` on."""

    ids: np.ndarray
    first: int
    text: str = ""
    """What it covers, where it was cut from a text."""


def evaluation_text(path: Path | None = None) -> EvaluationText:
    """The file at ``path``, or the held-out half of Python's help topics.

    Raises:
        EvaluationError: the file is missing, empty or not UTF-8.
    """
    if path is None:
        python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
        return EvaluationText(f"pydoc_data.topics of Python {python}, even half", "\n".join(_half(0)))
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise EvaluationError(f"The text {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path} is not UTF-8 (byte {error.start}). Convert it first.") from None
    if not text.strip():
        raise EvaluationError(f"{path} is empty: there is nothing to score.")
    return EvaluationText(path.name, text)


def calibration_text() -> EvaluationText:
    """The other half of the help topics, without the paragraphs that the evaluation half quotes too."""
    held_out = {paragraph.strip() for topic in _half(0) for paragraph in _PARAGRAPH.split(topic)}
    kept = [p for topic in _half(1) for p in _PARAGRAPH.split(topic) if p.strip() not in held_out]
    return EvaluationText("pydoc_data.topics, odd half without shared paragraphs", "\n\n".join(kept))


def sentences(count: int, text: EvaluationText | None = None) -> list[str]:
    """``count`` distinct prose sentences, evenly spaced over the text (fewer when it has fewer)."""
    source = (text or evaluation_text()).text
    flat = [re.sub(r"\s+", " ", paragraph).strip() for paragraph in _PARAGRAPH.split(source)]
    split = (piece for paragraph in flat for piece in re.split(r"(?<=[.!?]) (?=[A-Z])", paragraph))
    prose = list(dict.fromkeys(s for s in split if len(s.split()) in _SENTENCE_WORDS and s[-1] in ".!?"))
    return [prose[i] for i in evenly(len(prose), count)]


def cut(
    text: EvaluationText,
    tokenizer: Tokenizer,
    *,
    window: int,
    stride: int | None = None,
    limit: int | None = None,
    unscored: int = 0,
) -> tuple[list[Window], Protocol]:
    """Tokenize once and cut into windows of ``window`` tokens, ``stride`` apart (default: not overlapping).

    Every token is scored at most once: a window scores its targets that no earlier window scored. With
    ``limit``, that many windows evenly spaced over the text; with ``unscored``, the first so many tokens of
    every window are context only. A text shorter than one window is one window;
    of a longer one, the tokens that fill no last window are dropped, and the protocol says how many.

    Raises:
        EvaluationError: window, stride or ``unscored`` make no sense, or nothing of the text can be scored.
    """
    stride = window if stride is None else stride
    prefix = bos_prefix(tokenizer)
    if window < len(prefix) + 2 or not 0 < stride <= window:
        raise EvaluationError(
            f"Window {window}, stride {stride}: need a window of 2 or more and 0 < stride <= window."
        )
    if not 0 <= unscored < window:
        raise EvaluationError(
            f"{unscored} unscored tokens in windows of {window}: need 0 or more, and fewer."
        )
    body = window - len(prefix)
    stride = min(stride, body)
    encoded = tokenizer.encode(text.text, add_special_tokens=False)
    ids = np.asarray(encoded.ids, dtype=np.int64)
    if len(ids) < 2:
        raise EvaluationError(f"{text.name} has {len(ids)} tokens; two are the least that can be scored.")
    starts = list(range(0, max(len(ids) - body, 0) + 1, stride))
    chosen = evenly(len(starts), limit if limit is not None else len(starts))
    head = np.asarray(prefix, dtype=np.int64)
    windows, spans = [], encoded.offsets
    for index in chosen:
        start = starts[index]
        piece = np.concatenate([head, ids[start : start + body]])
        overlap = body - stride if index and index - 1 in chosen else 0
        covered = text.text[spans[start][0] : spans[min(start + body, len(ids)) - 1][1]]
        windows.append(Window(piece[None, :], max(len(prefix) + overlap, unscored, 1), covered))
    scored = sum(max(w.ids.shape[1] - w.first, 0) for w in windows)
    if not scored:
        raise EvaluationError(
            f"{text.name}: {len(ids)} tokens, and the first {unscored} of each window are not scored: none "
            "is left. Take a longer text or leave fewer unscored."
        )
    dropped = max(len(ids) - (starts[-1] + body), 0)
    counts = (len(windows), len(starts), prefix, scored, dropped)
    return windows, Protocol(text.name, text.sha256, window, stride, *counts, unscored)


def bos_prefix(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The special ids that this tokenizer puts in front of a text; empty when it puts none."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    full = tokenizer.encode("a", add_special_tokens=True).ids
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return tuple(full[:at])
    return ()


def _half(which: int) -> list[str]:
    return [topics[name] for name in sorted(topics)[which::2]]


def evenly(available: int, wanted: int) -> Sequence[int]:
    """``wanted`` of the places 0 to ``available`` - 1, evenly spaced; all when there are not more."""
    if wanted >= available:
        return range(available)
    return [index * available // wanted for index in range(wanted)]
