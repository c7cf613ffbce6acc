"""SentencePiece BPE vocabularies (``tokenizer.ggml.model`` = ``llama``) as a ``tokenizers`` pipeline.

SentencePiece merges the neighbouring pair whose union has the best score, leftmost first. ``tokenizers``
merges by the rank of a list, so the list holds every way to put a token together from two others, best score
first. What is in no token is spelled in bytes (``<0x0A>``).
"""

from tokenizers import Tokenizer, decoders, models, normalizers

from onnxforge.models.errors import SourceError

_SPACE = "▁"


def sentencepiece(
    where: str, tokens: tuple[str, ...], scores: tuple[float, ...], unknown: str | None, space_prefix: bool
) -> Tokenizer:
    """The pipeline without its special tokens.

    Args:
        where: the file, for messages.
        tokens: the vocabulary in id order.
        scores: one score per token; higher merges earlier.
        unknown: the token for what cannot even be spelled in bytes.
        space_prefix: put a space before every piece of text (Llama does, Gemma does not).

    Raises:
        SourceError: the byte tokens are missing, so some text could not be spelled.
    """
    ids = {token: index for index, token in enumerate(tokens)}
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in ids]
    if missing:
        raise SourceError(
            f"{where}: {len(missing)} of the 256 byte tokens are missing, the first is {missing[0]:#x}."
        )
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(tokens, scores, ids),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    replace = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), replace]) if space_prefix else replace
    )
    steps: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(tokens: tuple[str, ...], scores: tuple[float, ...], ids: dict[str, int]) -> list[tuple[str, str]]:
    ranked: list[tuple[float, int, int, str, str]] = []
    for token, score in zip(tokens, scores, strict=True):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                ranked.append((-score, ids[left], ids[right], left, right))
    ranked.sort(key=lambda merge: merge[0])
    return [(left, right) for *_, left, right in ranked]
