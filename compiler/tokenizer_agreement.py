"""Does a tokenizer with fewer tokens read and write as the one it was made from? Asked at compile time."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from onnxforge.compiler.calibration_data import CalibrationData, data_of
from onnxforge.compiler.calibration_tokens import tokenizer_of
from onnxforge.compiler.count_tokens import corpus_records
from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.compiler.served_source import renumbered_ids
from onnxforge.compiler.text_corpus import HARD, fragments, texts
from onnxforge.models.source import Source
from onnxforge.passes.token_counts import kept_tokens

_RECORDS, _LINES, _STRANGE = 200, 4000, 300
_SHOWN = 200


def check_agreement(source: Source, served: Source, model: ir.Model) -> None:
    """Hold the tokenizers of ``source`` and ``served`` against each other on the corpus and on hard texts.

    What was read as kept tokens is read as the same ones; every text is written as it was.

    Raises:
        SelfCheckFailed: they differ; the first text, and both readings.
    """
    before, after = tokenizer_of(source), tokenizer_of(served)
    kept, data = kept_tokens(model), data_of(model)
    if before is None or after is None or kept is None or data is None:
        return
    ids = after.get_vocab(with_added_tokens=True)
    if {token: int(kept[number]) for token, number in ids.items()} != {
        token: number for token, number in before.get_vocab(with_added_tokens=True).items() if token in ids
    } or len(ids) != len(kept):
        raise _failed("", "numbered otherwise than the tokens that were kept")
    specials = [token.content for token in before.get_added_tokens_decoder().values()][:8]
    strange = (*HARD, *texts(_STRANGE, specials), *fragments(_STRANGE, specials))
    unknown = _unknown(before)
    for text in (*strange, *_lines(data)):
        theirs = np.asarray(before.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        ours = np.asarray(after.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        if unknown in theirs and _is_wordpiece(before):
            continue  # it never goes back, and with other pieces it may come to an end
        wanted = renumbered_ids(theirs, model)
        if (wanted >= 0).all() and not np.array_equal(wanted, ours):
            raise _failed(text, f"{kept[ours].tolist()}, and was read as the kept tokens {theirs.tolist()}")
        if (said := _written(after, ours)) != (meant := _written(before, theirs)):
            raise _failed(text, f"{said!r}, and was {meant!r}")


def _lines(data: CalibrationData) -> Iterator[str]:
    records = (record.content for record in islice(corpus_records(data), _RECORDS))
    lines = (line for content in records if isinstance(content, str) for line in content.splitlines())
    return islice((line for line in lines if line.strip()), _LINES)


def _written(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    if not _is_wordpiece(tokenizer):
        decoded: str = tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        return decoded
    # Its decoder puts spaces by rules of English between pieces; what was read is in the pieces.
    prefix = tokenizer.model.continuing_subword_prefix
    return "".join((tokenizer.id_to_token(number) or "").removeprefix(prefix) for number in ids.tolist())


def _is_wordpiece(tokenizer: Tokenizer) -> bool:
    return type(tokenizer.model).__name__ == "WordPiece"


def _unknown(tokenizer: Tokenizer) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    number: int | None = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return number


def _failed(text: str, what: str) -> SelfCheckFailed:
    return SelfCheckFailed(
        f"prune-vocabulary: with fewer tokens {text[:_SHOWN]!r} is {what[: 4 * _SHOWN]}. Compile without the "
        "pass, and report this."
    )
