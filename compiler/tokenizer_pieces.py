"""What a tokenizer.json says of its vocabulary: which tokens there are, which it cannot do without, and what
each one is put together from; or why that cannot be told.

Sources: Sennrich et al. 2016 (1508.07909) for BPE; Kudo 2018 (1804.10959) for Unigram; Schuster and Nakajima
2012 for WordPiece; the file's form is that of the tokenizers library 0.22.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from tokenizers import pre_tokenizers

from onnxforge.compiler.errors import RequestRefused
from onnxforge.models.source import Json

Part = Mapping[str, Json]
_PROCESSORS = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel", "Sequence")
_SPACE = "▁"


class TokenizerNotFollowed(RequestRefused):
    """The vocabulary of this tokenizer cannot be cut: what was found, and what it would have to be."""


@dataclass(frozen=True)
class TokenPieces:
    """A vocabulary and what holds it together."""

    ids: Mapping[str, int]
    """Every token, added ones included."""
    needed: frozenset[int]
    parts: Mapping[int, tuple[int, ...]]
    """Of a token that is merged from others: those, down to single characters through themselves."""


@lru_cache(maxsize=2)
def token_pieces(stored: bytes) -> TokenPieces:
    """The pieces of a ``tokenizer.json``.

    Raises:
        TokenizerNotFollowed: it is no BPE, WordPiece or Unigram, or has a part that is not understood.
    """
    described = json.loads(stored)
    model = described["model"]
    kind = model.get("type") or _untyped(model)
    ids = _model_ids(kind, model)
    for added in described.get("added_tokens") or []:
        if ids.setdefault(added["content"], added["id"]) != added["id"]:
            raise _not_followed(f"the added token {added['content']!r} has two ids")
    if len(set(ids.values())) != len(ids):
        raise _not_followed("two tokens share an id")
    if model.get("dropout"):
        raise _not_followed("its merges drop out at random (model.dropout)")
    needed = {added["id"] for added in described.get("added_tokens") or []}
    needed |= set(processor_ids(described.get("post_processor")))
    if isinstance(padding := described.get("padding"), dict):
        needed.add(padding["pad_id"])
    if kind == "BPE":
        basic, parts = _bpe(described, model, ids)
    else:
        basic, parts = (_wordpiece(model, ids) if kind == "WordPiece" else _unigram(model, ids)), {}
    return TokenPieces(ids, frozenset(needed | basic), parts)


def processor_ids(processor: Json) -> list[int]:
    """The ids that a post-processor puts around texts.

    Raises:
        TokenizerNotFollowed: it is of a kind that is not known here.
    """
    if processor is None:
        return []
    assert isinstance(processor, dict)
    kind = processor.get("type")
    if kind not in _PROCESSORS:
        raise _not_followed(f"its post_processor is {kind!r}, and {', '.join(_PROCESSORS)} are known")
    if kind == "Sequence":
        return [number for item in _list(processor["processors"]) for number in processor_ids(item)]
    if kind == "TemplateProcessing":
        listed = processor["special_tokens"]
        assert isinstance(listed, dict)
        return [
            int(str(number))
            for item in listed.values()
            if isinstance(item, dict)
            for number in _list(item["ids"])
        ]
    return [int(str(_list(processor[name])[1])) for name in ("sep", "cls") if name in processor]


def merges_of(model: Part) -> list[tuple[str, str]]:
    """Left and right of every merge, by rank; they stand as pairs or as two words."""
    merges = _list(model.get("merges"))
    pairs = [item.split(" ") if isinstance(item, str) else _list(item) for item in merges]
    return [(str(left), str(right)) for left, right in pairs]


def merged(model: Part, left: str, right: str) -> str:
    """What a merge makes: the right token loses its mark of a word that goes on."""
    return left + right[len(str(model.get("continuing_subword_prefix") or "")) :]


def _untyped(model: Part) -> str:
    """Old files name no type: only BPE has merges, only Unigram a list."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _model_ids(kind: object, model: Part) -> dict[str, int]:
    vocabulary = model.get("vocab")
    if kind in ("BPE", "WordPiece") and isinstance(vocabulary, dict):
        return {token: int(str(number)) for token, number in vocabulary.items()}
    if kind == "Unigram" and isinstance(vocabulary, list):
        tokens = [str(_list(item)[0]) for item in vocabulary]
        if len(set(tokens)) != len(tokens):
            raise _not_followed("its pieces are not all different")
        return {token: number for number, token in enumerate(tokens)}
    reason = (
        "whose words have no smaller pieces to fall back on" if kind == "WordLevel" else "which is not known"
    )
    raise _not_followed(f"it is a {kind}, {reason}")


def _bpe(described: Part, model: Part, ids: Mapping[str, int]) -> tuple[set[int], dict[int, tuple[int, ...]]]:
    makers: dict[str, list[tuple[str, str]]] = {}
    merges = merges_of(model)
    for left, right in merges:
        makers.setdefault(merged(model, left, right), []).append((left, right))
    several = [token for token, ways in makers.items() if len(ways) > 1]
    parts = {ids[token]: tuple(ids[part] for part in ways[0]) for token, ways in makers.items()}
    if several:
        ranks = {pair: rank for rank, pair in enumerate(merges)}
        for token in several:
            used = _merged_on_the_way(model, token, ranks)
            every = (part for way in makers[token] for part in way)
            parts[ids[token]] = tuple(ids[part] for part in (used if used is not None else every))
    basic = {ids[str(model["unk_token"])]} if model.get("unk_token") in ids else set()
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    if "ByteLevel" in json.dumps([described.get("pre_tokenizer"), described.get("normalizer")]):
        basic |= {ids[letter] for letter in pre_tokenizers.ByteLevel.alphabet() if letter in ids}
    elif model.get("byte_fallback") and all(token in ids for token in byte_tokens):
        # A character that is not kept is written as its bytes; decoders turn "▁" into a space before bytes.
        letters = (token for token in ids if len(token) == 1 and (token.isascii() or token == _SPACE))
        basic |= {ids[token] for token in (*byte_tokens, *letters)}
    else:
        basic |= {number for token, number in ids.items() if token not in makers}
    return basic, parts


def _merged_on_the_way(model: Part, token: str, ranks: Mapping[tuple[str, str], int]) -> Sequence[str] | None:
    """Every token that stands at some moment while the characters of ``token`` are merged; None where they
    do not merge to it."""
    symbols, seen = _characters(model, token), []
    while len(symbols) > 1:
        pairs = [(ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(symbols))]
        rank, at = min(pairs)
        if rank == len(ranks):
            return None
        seen += symbols[at : at + 2]
        symbols[at : at + 2] = [merged(model, symbols[at], symbols[at + 1])]
    return seen if symbols == [token] else None


def _characters(model: Part, token: str) -> list[str]:
    """The symbols that merging ``token`` starts from."""
    prefix, suffix = (
        str(model.get(f"{name}") or "") for name in ("continuing_subword_prefix", "end_of_word_suffix")
    )
    goes_on = bool(prefix) and token.startswith(prefix)
    ends = bool(suffix) and token.endswith(suffix)
    body = token[len(prefix) if goes_on else 0 : len(token) - (len(suffix) if ends else 0)]
    symbols = [prefix * (goes_on or at > 0) + letter for at, letter in enumerate(body)]
    if symbols and ends:
        symbols[-1] += suffix
    return symbols


def _wordpiece(model: Part, ids: Mapping[str, int]) -> set[int]:
    prefix = str(model.get("continuing_subword_prefix") or "")

    def letters(token: str) -> Iterable[str]:
        goes_on = bool(prefix) and token.startswith(prefix) and len(token) > len(prefix)
        body = token[len(prefix) :] if goes_on else token
        return [letter if not at and not goes_on else prefix + letter for at, letter in enumerate(body)]

    basic = _last_resorts(ids, letters)
    return basic | {ids[str(model["unk_token"])]} if model.get("unk_token") in ids else basic


def _unigram(model: Part, ids: Mapping[str, int]) -> set[int]:
    """The piece of the lowest score stays: what an unknown character costs is reckoned from it."""
    basic = _last_resorts(ids, lambda token: token)
    if model.get("byte_fallback"):
        basic |= {ids[token] for token in (f"<0x{number:02X}>" for number in range(256)) if token in ids}
    if isinstance(unknown := model.get("unk_id"), int):
        basic.add(unknown)
    scores = [float(str(_list(item)[1])) for item in _list(model["vocab"])]
    return basic | {scores.index(min(scores))}


def _last_resorts(ids: Mapping[str, int], letters: Callable[[str], Iterable[str]]) -> set[int]:
    """Single characters, and tokens with a character that is no token by itself."""
    found = set()
    for token, number in ids.items():
        single = list(letters(token))
        if len(single) < 2 or not all(letter in ids for letter in single):
            found.add(number)
    return found


def _list(value: Json) -> list[Json]:
    return value if isinstance(value, list) else []


def _not_followed(what: str) -> TokenizerNotFollowed:
    return TokenizerNotFollowed(
        f"prune-vocabulary: the tokenizer cannot be cut: {what}. Leave the pass out, or bring a "
        "tokenizer.json of byte-level BPE, BPE with byte fallback, WordPiece or Unigram."
    )
