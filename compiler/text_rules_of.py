"""What a tokenizer.json says, as the tables that a graph can follow; or why it cannot be followed.

Kinds of characters are asked of the tokenizers library itself, so that its version of Unicode is the graph's.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from onnxforge.compiler.errors import RequestRefused
from onnxforge.models.source import Json
from onnxforge.passes.text_graph import PAIR
from onnxforge.passes.text_rules import CUT_OFF, Cut, SpecialToken, TextRules

_CODES = 0x110000
_CHUNK = 1 << 14
_LETTER, _NUMBER, _SPACE = 1, 2, 3
_SURROGATES = range(0xD800, 0xE000)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_PATTERNS: Mapping[str, tuple[Cut, int]] = {
    _GPT2: (Cut.GPT2, 1),
    CL100K % "{1,3}": (Cut.CL100K, 3),
    CL100K % "": (Cut.CL100K, 1),
}
Part = Mapping[str, Json]


class TextNotFollowed(RequestRefused):
    """A graph cannot read text as this tokenizer does: what was found, and what it would have to be."""


@lru_cache(maxsize=1)
def text_rules(stored: bytes) -> TextRules:
    """The rules of a ``tokenizer.json``.

    Raises:
        TextNotFollowed: it is no byte-level BPE, or has a part that the graph does not follow.
    """
    described = json.loads(stored)
    tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    model, decoder = described["model"], described.get("decoder") or {}
    _only(described.get("normalizer") is None, "normalizer", described.get("normalizer"), "none")
    _only(model.get("type") == "BPE", "model", model.get("type"), "BPE")
    _only(decoder.get("type") == "ByteLevel", "decoder", decoder.get("type"), "ByteLevel")
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _only(not model.get(field), f"model.{field}", model.get(field), "none")
    _only(not model.get("byte_fallback"), "model.byte_fallback", True, "false")
    cut, group, each = _cut(described.get("pre_tokenizer") or {})
    vocabulary: dict[str, int] = model["vocab"]
    _only(max(vocabulary.values(), default=0) < PAIR, "model.vocab", len(vocabulary), f"below {PAIR} tokens")
    merges = _merges(model["merges"], vocabulary)
    if model.get("ignore_merges"):
        _check_whole_words(tokenizer, vocabulary)
    before, after = _around(tokenizer)
    return TextRules(
        cut=cut,
        number_group=group,
        kinds=_kinds(each),
        byte_ids=np.array([vocabulary.get(letter, -1) for letter in _byte_letters()], np.int64),
        merges=merges,
        specials=_specials(described.get("added_tokens") or []),
        before=before,
        after=after,
        shown=shown(stored),
    )


def _only(holds: bool, what: str, found: object, wanted: str) -> None:
    if not holds:
        shown = json.dumps(found, ensure_ascii=False)
        raise TextNotFollowed(
            f"--text-io: the tokenizer's {what} is {shown[:200]}, and the graph reads text only where it is "
            f"{wanted}. Leave --text-io out and tokenize outside the graph, as with model_spec.onnx."
        )


def _cut(part: Part) -> tuple[Cut, int, bool]:
    """Regular expression, numbers per word, and whether numbers are cut off first."""
    listed = part.get("pretokenizers") if part.get("type") == "Sequence" else [part]
    parts = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    each = False
    if parts and parts[0].get("type") == "Digits":
        _only(bool(parts[0].get("individual_digits")), "pre_tokenizer", part, "one that cuts single digits")
        each, parts = True, parts[1:]
    wanted = "ByteLevel, or Split by the pattern of GPT-2, Llama 3 or Qwen2, then ByteLevel"
    _only(bool(parts) and parts[-1].get("type") == "ByteLevel", "pre_tokenizer", part, wanted)
    last = parts[-1]
    _only(not last.get("add_prefix_space"), "pre_tokenizer", part, "without add_prefix_space")
    if last.get("use_regex", True):
        _only(len(parts) == 1, "pre_tokenizer", part, wanted)
        return Cut.GPT2, 1, each
    pattern = parts[0].get("pattern") if len(parts) == 2 and parts[0].get("type") == "Split" else None
    text = pattern.get("Regex") if isinstance(pattern, dict) else None
    _only(isinstance(text, str) and text in _PATTERNS, "pre_tokenizer", part, wanted)
    whole = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
    _only(whole, "pre_tokenizer", part, "one whose Split isolates")
    return (*_PATTERNS[str(text)], each)


def _merges(listed: Sequence[Json], vocabulary: Mapping[str, int]) -> np.ndarray:
    """int64 [M, 3], by rank.

    Raises:
        TextNotFollowed: a merge uses what a later one makes, so that joining all pairs of the least rank at
            once is not what joining them one by one gives.
    """
    rows: list[tuple[int, int, int]] = []
    made_last: dict[int, int] = {}
    first_use: dict[int, int] = {}
    for rank, item in enumerate(listed):
        left, right = item.split(" ") if isinstance(item, str) else map(str, item)  # type: ignore[arg-type]
        ids = vocabulary[left], vocabulary[right], vocabulary[left + right]
        rows.append(ids)
        first_use.setdefault(ids[0], rank)
        first_use.setdefault(ids[1], rank)
        made_last[ids[2]] = rank
    pairs = {row[:2] for row in rows}
    _only(len(pairs) == len(rows), "model.merges", len(rows), f"without repetitions ({len(pairs)} pairs)")
    early = [token for token, rank in made_last.items() if first_use.get(token, rank + 1) <= rank]
    _only(not early, "model.merges", early[:5], "in an order that makes a token before any merge uses it")
    return np.array(rows, np.int64).reshape(-1, 3)


def _check_whole_words(tokenizer: Tokenizer, vocabulary: Mapping[str, int]) -> None:
    """``ignore_merges`` takes a word that is a token as it is; the graph merges. Both must be the same."""
    described = json.loads(tokenizer.to_str())
    described["model"]["ignore_merges"] = False
    described["added_tokens"], described["pre_tokenizer"], described["post_processor"] = [], None, None
    merging = Tokenizer.from_str(json.dumps(described))
    special = {item["content"] for item in json.loads(tokenizer.to_str())["added_tokens"]}
    words = [word for word in vocabulary if word not in special]
    found = merging.encode_batch(words, add_special_tokens=False)
    odd = [word for word, got in zip(words, found, strict=True) if got.ids != [vocabulary[word]]]
    _only(not odd, "model.ignore_merges", odd[:5], "without effect (merges make every token)")


def _specials(listed: Sequence[Part]) -> tuple[SpecialToken, ...]:
    """Added tokens, all of which are looked for in the text.

    Raises:
        TextNotFollowed: one strips spaces or wants whole words, or two may overlap.
    """
    for item in listed:
        odd = [flag for flag in ("lstrip", "rstrip", "single_word") if item.get(flag)]
        _only(not odd, f"added token {item['content']!r}", odd, "matched as it is")
    late = {str(item["content"]): bool(item.get("normalized")) for item in listed if item["content"]}
    begins = {text[:end] for text in late for end in range(1, len(text))}
    for text in late:
        inside = {text[start:end] for start in range(1, len(text)) for end in range(start + 1, len(text) + 1)}
        ends = {text[start:] for start in range(1, len(text))}
        overlaps = (ends & begins) | (inside & late.keys())
        # those that are normalized are looked for when the others have been found
        overlaps |= {
            text[:end] for end in range(1, len(text)) if late.get(text[:end], late[text]) != late[text]
        }
        _only(not overlaps, f"added token {text!r}", sorted(overlaps), "free of overlaps with others")
    return tuple(
        SpecialToken(str(item["content"]), int(str(item["id"]))) for item in listed if item["content"]
    )


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor puts before and behind a text."""
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    found = (place for place in range(len(whole) + 1) if whole[place : place + len(plain)] == plain)
    at = next(found, None)
    _only(at is not None, "post_processor", [plain, whole], "one that puts tokens around a text")
    assert at is not None
    return tuple(whole[:at]), tuple(whole[at + len(plain) :])


def _byte_letters() -> tuple[str, ...]:
    """The character that stands for each byte in a byte-level vocabulary (GPT-2's table): printable bytes of
    Latin-1 for themselves, the others for code points from 256 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def shown(stored: bytes) -> tuple[bytes, ...]:
    """The bytes that each token of a byte-level ``tokenizer.json`` shows in a decoded text: none for special
    tokens, and its own UTF-8 for one with a character that stands for no byte."""
    tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    bytes_of = {letter: byte for byte, letter in enumerate(_byte_letters())}
    added = tokenizer.get_added_tokens_decoder()
    hidden = {number for number, token in added.items() if token.special}
    tokens = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    rows = []
    for number in range(max(tokens, default=-1) + 1):
        token = "" if number in hidden else tokens.get(number, "")
        known = all(letter in bytes_of for letter in token)
        rows.append(bytes(bytes_of[letter] for letter in token) if known else token.encode())
    return tuple(rows)


@lru_cache(maxsize=2)
def _kinds(each_number: bool) -> np.ndarray:
    """uint8 [0x110000]: of each code point 0 other, 1 letter, 2 number, 3 space."""
    text = "".join(chr(code) for code in range(_CODES) if code not in _SURROGATES)
    kinds = np.zeros(_CODES, np.uint8)
    for kind, pattern in ((_LETTER, r"\p{L}"), (_NUMBER, r"\p{N}"), (_SPACE, r"\s")):
        without = normalizers.Replace(Regex(f"{pattern}+"), "").normalize_str(text)
        kinds[np.setdiff1d(_codes(text), _codes(without), assume_unique=True)] = kind
    if each_number:
        for start in range(0, len(text), _CHUNK):
            pieces = pre_tokenizers.Digits().pre_tokenize_str("a" + text[start : start + _CHUNK])
            for numbers, _ in pieces[1::2]:  # text and numbers by turns
                kinds[_codes(numbers)] |= CUT_OFF
    return kinds


def _codes(text: str) -> np.ndarray:
    """The code points of ``text``, uint32."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)
