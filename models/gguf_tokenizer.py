"""The exact tokenizer of a GGUF file, written as the files of a Hugging Face tokenizer.

``tokenizer.json`` is built with the ``tokenizers`` library from the vocabulary, the merges and the name of
the cutting rule. Only byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) and SentencePiece BPE (``llama``)
are known; anything else is refused rather than approximated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.gguf_file import GgufFile, Value
from onnxforge.models.gguf_pretokenizers import PRE_TOKENIZERS, PreTokenizer
from onnxforge.models.gguf_sentencepiece import sentencepiece
from onnxforge.models.source import Json

_TURN_ENDS = ("<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endofturn|>")
"""Control tokens that end a turn in the published chat formats; where one exists, it stops generation."""


_UNTRIMMED = ("<unk>", "<s>", "<|endoftext|>")
"""Phi-3's added tokens after which white space stays."""


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type``, as the GGUF specification numbers it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file, checked."""

    where: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    metadata: Mapping[str, Value]

    def special(self, name: str) -> int | None:
        """Id of ``bos``, ``eos``, ``unknown``, ``padding``, ``eot`` ... if the file names one."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        known = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.tokens)
        return int(value) if known and isinstance(value, int) else None

    def flag(self, name: str, default: bool) -> bool:
        """A boolean such as ``add_bos_token``."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default

    def of_type(self, *kinds: TokenType) -> list[str]:
        """Tokens of these types, in id order."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in kinds]


def tokenizer_files(file: GgufFile, context_length: int) -> dict[str, bytes]:
    """The tokenizer's files by name: ``tokenizer.json``, ``tokenizer_config.json`` and their companions.

    Raises:
        SourceError: vocabulary, merges or types are missing or contradict each other.
        UnsupportedModel: a tokenizer or cutting rule that cannot be reproduced exactly.
    """
    vocabulary = _vocabulary(file)
    kind = file.metadata.get("tokenizer.ggml.model")
    match kind:
        case "gpt2":
            rule = _rule(file)
            tokenizer, adds_bos, trimmed = _byte_level(vocabulary, rule), rule.adds_bos, False
        case "llama":
            tokenizer, adds_bos, trimmed = _sentencepiece(vocabulary), True, _trims_after_added(file)
        case _:
            raise UnsupportedModel(
                f"{file.path}: tokenizer.ggml.model is {kind!r}. Byte-level BPE ('gpt2') and SentencePiece "
                "BPE ('llama') can be reproduced exactly. Use the Hugging Face folder of this model, which "
                "has its tokenizer.json."
            )
    add_bos = vocabulary.flag("add_bos_token", adds_bos)
    _add_specials(tokenizer, vocabulary, trimmed)
    _frame(tokenizer, vocabulary, add_bos)
    files = {"tokenizer.json": tokenizer.to_str(pretty=False).encode()}
    return files | _companions(vocabulary, context_length, add_bos)


def stop_ids(file: GgufFile) -> list[int]:
    """Token ids that end generation: EOS, end of turn, end of message."""
    vocabulary = _vocabulary(file)
    named = [vocabulary.special(name) for name in ("eos", "eot", "eom")]
    control = set(vocabulary.of_type(TokenType.CONTROL))
    written = [vocabulary.tokens.index(token) for token in _TURN_ENDS if token in control]
    return list(dict.fromkeys(identity for identity in [*named, *written] if identity is not None))


def _vocabulary(file: GgufFile) -> Vocabulary:
    tokens = _strings(file, "tokenizer.ggml.tokens")
    types = file.metadata.get("tokenizer.ggml.token_type", (int(TokenType.NORMAL),) * len(tokens))
    if not isinstance(types, tuple) or len(types) != len(tokens):
        raise SourceError(f"{file.path}: tokenizer.ggml.token_type does not have one entry per token.")
    if len(set(tokens)) != len(tokens):
        raise SourceError(
            f"{file.path}: tokenizer.ggml.tokens holds the same token twice; ids would be ambiguous."
        )
    kinds = tuple(int(kind) for kind in types if isinstance(kind, int))
    return Vocabulary(str(file.path), tokens, kinds, file.metadata)


def _strings(file: GgufFile, key: str) -> tuple[str, ...]:
    value = file.metadata.get(key)
    if isinstance(value, tuple) and value:
        strings = tuple(item for item in value if isinstance(item, str))
        if len(strings) == len(value):
            return strings
    raise SourceError(
        f"{file.path}: metadata key {key} is missing or is no list of strings; no tokenizer without it."
    )


def _rule(file: GgufFile) -> PreTokenizer:
    name = file.metadata.get("tokenizer.ggml.pre")
    if isinstance(name, str) and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    raise UnsupportedModel(
        f"{file.path}: pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known; guessing it would give "
        f"wrong token ids. Known: {', '.join(sorted(PRE_TOKENIZERS))}. Use the model's Hugging Face folder."
    )


def _merges(vocabulary: Vocabulary, ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merge list, every pair and its union checked against the vocabulary."""
    value = vocabulary.metadata.get("tokenizer.ggml.merges")
    pairs: list[tuple[str, str]] = []
    for merge in value if isinstance(value, tuple) else ():
        space = str(merge).find(" ", 1)  # a token is never empty, but may begin with a space
        if space < 0:
            raise SourceError(f"{vocabulary.where}: merge {merge!r} is not a pair of tokens.")
        pairs.append((str(merge)[:space], str(merge)[space + 1 :]))
    unknown = [pair for pair in pairs if not {*pair, "".join(pair)} <= ids.keys()]
    if unknown:
        raise SourceError(
            f"{vocabulary.where}: {len(unknown)} merges name tokens that do not exist: {unknown[0]} ..."
        )
    return pairs


def _byte_level(vocabulary: Vocabulary, rule: PreTokenizer) -> Tokenizer:
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    merges = _merges(vocabulary, ids)
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=rule.ignore_merges))
    steps: list[pre_tokenizers.PreTokenizer] = (
        [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    )
    steps += [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.gpt2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def _sentencepiece(vocabulary: Vocabulary) -> Tokenizer:
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    values = tuple(float(score) for score in scores) if isinstance(scores, tuple) else ()
    if len(values) != len(vocabulary.tokens):
        raise SourceError(f"{vocabulary.where}: tokenizer.ggml.scores does not have one entry per token.")
    unknown = vocabulary.special("unknown")
    return sentencepiece(
        vocabulary.where,
        vocabulary.tokens,
        values,
        None if unknown is None else vocabulary.tokens[unknown],
        vocabulary.flag("add_space_prefix", True),
    )


def _trims_after_added(file: GgufFile) -> bool:
    """Phi-3's own tokenizer swallows the white space after an added token; the file does not say so."""
    return file.metadata.get("general.architecture") == "phi3"


def _add_specials(tokenizer: Tokenizer, vocabulary: Vocabulary, trimmed: bool) -> None:
    """Control tokens are special (skipped when text is shown), user-defined ones are plain added tokens."""
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        rstrip = trimmed and token not in _UNTRIMMED
        if kind in (TokenType.CONTROL, TokenType.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True, rstrip=rstrip)])
        elif kind == TokenType.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False, rstrip=rstrip)])


def _frame(tokenizer: Tokenizer, vocabulary: Vocabulary, add_bos: bool) -> None:
    """BOS and EOS around every text, where the file asks for them."""
    before = vocabulary.special("bos") if add_bos else None
    after = vocabulary.special("eos") if vocabulary.flag("add_eos_token", False) else None
    if add_bos and before is None:
        raise SourceError(f"{vocabulary.where}: add_bos_token is set, but bos_token_id names no token.")
    if before is None and after is None:
        return
    used = [identity for identity in (before, after) if identity is not None]
    head = [vocabulary.tokens[before]] if before is not None else []
    tail = [vocabulary.tokens[after]] if after is not None else []
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*head, "$A", *tail],
        pair=[
            *head,
            "$A",
            *tail,
            *(f"{token}:1" for token in head),
            "$B:1",
            *(f"{token}:1" for token in tail),
        ],
        special_tokens=[(vocabulary.tokens[identity], identity) for identity in dict.fromkeys(used)],
    )


def _companions(vocabulary: Vocabulary, context_length: int, add_bos: bool) -> dict[str, bytes]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    specials: dict[str, Json] = {
        ours: vocabulary.tokens[identity]
        for stored, ours in names.items()
        if (identity := vocabulary.special(stored)) is not None
    }
    config: dict[str, Json] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **specials,
        "add_bos_token": add_bos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": context_length,
    }
    files = {"tokenizer_config.json": _json(config), "special_tokens_map.json": _json(specials)}
    template = vocabulary.metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _json(value: dict[str, Json]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
