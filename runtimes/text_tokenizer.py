"""Text to token ids and back, from tokenizer.json and tokenizer_config.json."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.strict_json import read_optional_json

_SPECIALS = ("bos_token", "eos_token", "pad_token", "unk_token", "mask_token")


class TextTokenizer:
    """The artifact's tokenizer; safe to share between threads."""

    def __init__(self, folder: Path, max_length: int | None = None) -> None:
        """`max_length` cuts every encoding to that many tokens, special tokens kept; None never cuts."""
        path = folder / "tokenizer.json"
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ArtifactError(f"{path}: not a readable tokenizer ({error}). Compile again.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        config = read_optional_json(folder / "tokenizer_config.json")
        specials = {**read_optional_json(folder / "special_tokens_map.json"), **config}
        self.special_tokens = {name: text for name in _SPECIALS if (text := _content(specials.get(name)))}
        """``bos_token`` and its kin that this model has, as text."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text; the post-processor's special tokens only when asked for."""
        ids: list[int] = self._tokenizer.encode(_encodable(text), add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Encoding]:
        """Token ids, type ids and character offsets of several texts, special tokens included."""
        found: list[Encoding] = self._tokenizer.encode_batch([_encodable(text) for text in texts])
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def token_id(self, text: str) -> int | None:
        """The id of one token, None when the vocabulary lacks it."""
        found: int | None = self._tokenizer.token_to_id(text)
        return found

    def difference(self, other: "TextTokenizer") -> str | None:
        """What tells two vocabularies apart, in words; None when every token has one id in both."""
        own: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        its: dict[str, int] = other._tokenizer.get_vocab(with_added_tokens=True)
        if own == its:
            return None
        differing = sorted(
            (own.keys() ^ its.keys()) | {token for token in own if its.get(token) != own[token]}
        )
        token = differing[0]
        return (
            f"{len(differing)} tokens differ (of {len(own)} and {len(its)}), such as {token!r}: "
            f"id {own.get(token)} and id {its.get(token)}"
        )

    @property
    def pad_id(self) -> int:
        """The id that fills the end of shorter texts; masked, so 0 when the model has none."""
        return self.token_id(self.special_tokens.get("pad_token", "")) or 0

    @property
    def size(self) -> int:
        """Ids in the vocabulary, added tokens included."""
        size: int = self._tokenizer.get_vocab_size()
        return size


def _encodable(text: str) -> str:
    """The text itself, when UTF-8 can hold it: half a surrogate pair is no character, and Python hides each
    byte that was no UTF-8 in one. Raises RequestError."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"byte 0x{code - 0xDC00:02X}" if 0xDC80 <= code <= 0xDCFF else f"lone surrogate U+{code:04X}"
        raise RequestError(
            f"The text is not valid UTF-8: {found} at character {error.start}. Convert or remove it."
        ) from error
    return text


def _content(value: object) -> str | None:
    """A special token is written as its text or as an object that holds it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
