"""The source as the rest of a compile sees it once a pass has cut the vocabulary: everything with new ids."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from onnxforge.compiler.smaller_tokenizer import smaller_tokenizer
from onnxforge.compiler.targets import Target
from onnxforge.compiler.token_ids import named_ids, renumbered
from onnxforge.compiler.tokenizer_pieces import TokenizerNotFollowed, TokenPieces, token_pieces
from onnxforge.models.source import Json, Source
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.token_counts import kept_tokens

_TOKENIZER = "tokenizer.json"
_NAMING = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Other files with keys like ``eos_token_id``."""
_STALE = (
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model",
)  # fmt: skip
"""The old vocabulary for loaders that know no tokenizer.json: dropped, so that none reads it."""


def served_source(source: Source, model: ir.Model) -> Source:
    """``source`` with the vocabulary that ``model`` has now: itself, where no pass has cut it.

    Tokenizer, configurations and vocabulary files speak the new ids; weights stay what they are.

    Raises:
        TokenizerNotFollowed: see :func:`check_vocabulary`.
    """
    kept = kept_tokens(model)
    if kept is None:
        return source
    stored = source.sidecars[_TOKENIZER]
    new = {int(old): number for number, old in enumerate(kept)}
    size = vocabulary_size(source, token_pieces(stored))
    tokenizer = smaller_tokenizer(stored, tuple(kept.tolist()))
    files = {
        name: _rewritten(name, data, new, size)
        for name, data in source.sidecars.items()
        if name not in _STALE
    }
    files[_TOKENIZER] = tokenizer
    if "vocab.txt" in files:
        names = {number: token for token, number in token_pieces(tokenizer).ids.items()}
        files["vocab.txt"] = "".join(f"{names[number]}\n" for number in sorted(names)).encode()
    return replace(source, config=renumbered(source.config, new, size), sidecars=files)


def special_ids(source: Source, pieces: TokenPieces) -> frozenset[int]:
    """The tokens that ``source``'s configurations name, by id or by text: kept whatever a corpus holds.

    Raises:
        TokenizerNotFollowed: they name an id of the vocabulary that the tokenizer has no token for.
    """
    size = vocabulary_size(source, pieces)
    objects = [source.config, *(_object(source, name) for name in _NAMING)]
    named = {number for item in objects for number in named_ids(item) if 0 <= number < size}
    strange = sorted(named - set(pieces.ids.values()))
    if strange:
        raise TokenizerNotFollowed(
            f"prune-vocabulary: a configuration of {source.ref} names token {strange[0]}, and tokenizer.json "
            "has none of that number. Correct it, or leave the pass out."
        )
    texts = (text for item in objects for text in _special_texts(item))
    return frozenset({*named, *(pieces.ids[text] for text in texts if text in pieces.ids)})


def check_cut(target: Target, source: Source) -> None:
    """Where ``target`` prunes the vocabulary, :func:`check_vocabulary` before anything is exported."""
    if PruneVocabulary.pass_name() in target.pass_names:
        check_vocabulary(source)


def check_vocabulary(source: Source) -> TokenPieces:
    """What holds the vocabulary of ``source`` together.

    Raises:
        TokenizerNotFollowed: it has no tokenizer, one that cannot be cut, or configurations that name ids
            which that tokenizer does not have; or the tokenizers library numbers its tokens otherwise.
    """
    stored = source.sidecars.get(_TOKENIZER)
    if stored is None:
        raise TokenizerNotFollowed(
            f"prune-vocabulary: {source.ref} brings no {_TOKENIZER}, so nobody can tell which tokens a text "
            "uses. Put it beside the weights, or leave the pass out."
        )
    pieces = token_pieces(stored)
    special_ids(source, pieces)
    if Tokenizer.from_str(stored.decode("utf-8")).get_vocab(with_added_tokens=True) != pieces.ids:
        raise TokenizerNotFollowed(
            f"prune-vocabulary: the tokenizers library reads other ids from the {_TOKENIZER} of {source.ref} "
            "than stand in it. Write it anew with a current version of transformers, or leave the pass out."
        )
    return pieces


def vocabulary_size(source: Source, pieces: TokenPieces) -> int:
    """Ids that the model tells apart: as configured, or as the tokenizer has them."""
    size = source.config.get("vocab_size")
    return max(size if isinstance(size, int) else 0, max(pieces.ids.values()) + 1)


def _rewritten(name: str, data: bytes, new: Mapping[int, int], size: int) -> bytes:
    if name == "added_tokens.json":
        return _json({token: new.get(int(str(number))) for token, number in json.loads(data).items()})
    if name not in _NAMING:
        return data
    content = renumbered(json.loads(data), new, size)
    decoder = content.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        moved = ((new.get(int(number)), token) for number, token in decoder.items())
        content["added_tokens_decoder"] = {
            str(number): token for number, token in moved if number is not None
        }
    return _json(content)


def _special_texts(config: Mapping[str, Json]) -> Iterator[str]:
    """Values of keys like ``mask_token``: a text, or an object with its ``content``."""
    for key, value in config.items():
        listed = value if isinstance(value, list) else [value]
        for item in listed if key.endswith(("_token", "special_tokens")) else ():
            text = item.get("content") if isinstance(item, dict) else item
            if isinstance(text, str):
                yield text


def _object(source: Source, name: str) -> dict[str, Json]:
    data = source.sidecars.get(name)
    return json.loads(data) if data is not None else {}


def _json(content: Mapping[str, Json]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def renumbered_ids(ids: np.ndarray, model: ir.Model) -> np.ndarray:
    """Ids of the source's vocabulary, int64, as those of ``model``; -1 where it has none any more."""
    kept = kept_tokens(model)
    if kept is None:
        return ids
    places = np.searchsorted(kept, ids).clip(0, len(kept) - 1)
    return np.where(kept[places] == ids, places, -1)
