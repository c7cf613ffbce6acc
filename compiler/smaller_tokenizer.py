"""A tokenizer.json with fewer tokens, renumbered from 0, that reads and writes every text.

A text that was read as kept tokens only is read as the same tokens. BPE takes the merge of the lowest rank at
each step, and every merge on the way to a kept token is kept, in the same order; WordPiece takes the longest
piece that matches, and that one is kept; Unigram takes the best path of all, and that one is still there. Any
other text falls to smaller pieces. One difference: a word for which WordPiece came to no end (it never goes
back) may now be read, where it was unknown.
"""

import json
from collections.abc import Mapping
from functools import lru_cache

from onnxforge.compiler.tokenizer_pieces import merged, merges_of, token_pieces
from onnxforge.models.source import Json


@lru_cache(maxsize=1)
def smaller_tokenizer(stored: bytes, kept: tuple[int, ...]) -> bytes:
    """``stored`` with the tokens ``kept``, ascending: number i is what was number ``kept[i]``.

    Raises:
        TokenizerNotFollowed: see :func:`tokenizer_pieces.token_pieces`.
        ValueError: ``kept`` is not one that the tokenizer's own needs and merges allow.
    """
    pieces = token_pieces(stored)
    new = {old: number for number, old in enumerate(kept)}
    without = [token for token in kept if any(part not in new for part in pieces.parts.get(token, ()))]
    if without or not pieces.needed <= new.keys():
        raise ValueError(f"a tokenizer needs tokens that are not kept: {without[:5]}")
    described = json.loads(stored)
    model = described["model"]
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if isinstance(model.get("unk_id"), int):
            model["unk_id"] = new[model["unk_id"]]
    else:
        model["vocab"] = {token: new[old] for token, old in model["vocab"].items() if old in new}
    if "merges" in model:
        pairs = zip(model["merges"], merges_of(model), strict=True)
        alive = model["vocab"].keys()
        model["merges"] = [
            stored_form
            for stored_form, (left, right) in pairs
            if {left, right, merged(model, left, right)} <= alive
        ]
    for added in described.get("added_tokens") or []:
        added["id"] = new[added["id"]]
    _renumber_processor(described.get("post_processor"), new)
    if isinstance(padding := described.get("padding"), dict):
        padding["pad_id"] = new[padding["pad_id"]]
    return json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()


def _renumber_processor(processor: Json, new: Mapping[int, int]) -> None:
    """In place, as :func:`tokenizer_pieces.processor_ids` finds them."""
    if not isinstance(processor, dict):
        return
    for name in ("sep", "cls"):
        if isinstance(pair := processor.get(name), list):
            pair[1] = new[int(str(pair[1]))]
    special = processor.get("special_tokens")
    for item in special.values() if isinstance(special, dict) else ():
        if isinstance(item, dict) and isinstance(ids := item["ids"], list):
            item["ids"] = [new[int(str(number))] for number in ids]
    inner = processor.get("processors")
    for item in inner if isinstance(inner, list) else ():
        _renumber_processor(item, new)
