"""How text is cut before byte-pair merging, by the name that stands in ``tokenizer.ggml.pre``.

A GGUF file stores the vocabulary and the merges, but the cutting rule only as a name. Each rule below is the
``pre_tokenizer`` of the ``tokenizer.json`` of the model family that the name stands for. A wrong rule gives
plausible text and wrong token ids, so an unknown name is refused. ``bench/tokenizer_oracle.py`` compares
them with llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
_TEKKEN = _CASED % ("", "") + r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
_GPT4O = (
    _CASED % (_CONTRACTIONS + "?", _CONTRACTIONS + "?") + r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _TAIL
)


@dataclass(frozen=True)
class PreTokenizer:
    """One cutting rule. Pieces are then spelled in GPT-2's byte alphabet."""

    patterns: tuple[str, ...] = ()
    """Regular expressions applied one after the other; matches and what lies between become pieces."""
    digits: bool = False
    """Cut before and after every digit first."""
    gpt2: bool = False
    """Finish with GPT-2's own expression."""
    ignore_merges: bool = False
    """A piece that is a token as it stands is that token, whatever the merges say."""
    adds_bos: bool = False
    """Prepend BOS when the file does not say."""


_GPT2 = PreTokenizer(gpt2=True)
_STARCODER = PreTokenizer(digits=True, gpt2=True)
_QWEN = PreTokenizer((_QWEN2,))
_LLAMA_BPE = PreTokenizer((_LLAMA3,), ignore_merges=True, adds_bos=True)

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "olmo": _GPT2,
    "mpt": _GPT2,
    "smollm": _STARCODER,
    "starcoder": _STARCODER,
    "refact": _STARCODER,
    "command-r": _STARCODER,
    "codeshell": _STARCODER,
    "exaone": _STARCODER,
    "qwen2": _QWEN,
    "deepseek-r1-qwen": _QWEN,
    "stablelm2": _QWEN,
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "falcon3": _LLAMA_BPE,
    "lfm2": _LLAMA_BPE,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, adds_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
}
