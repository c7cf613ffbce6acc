"""From a record of calibration data to token ids, as the model's own tokenizer and chat template say."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.calibration_records import Record
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.eval_text import bos_prefix
from onnxforge.models.source import Source
from onnxforge.runtimes.chat_template import ChatTemplate, read_chat_template
from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.text_tokenizer import TextTokenizer

_TOKENIZER = "tokenizer.json"
_CHAT = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_EVERY = 1 << 40
_USER, _ASSISTANT, _SYSTEM = ({"role": role, "content": "a"} for role in ("user", "assistant", "system"))
_CONVERSATIONS = ((_USER,), (_SYSTEM, _USER), (_USER, _ASSISTANT, _USER))


class RecordTokens:
    """Token ids of records, for one model."""

    def __init__(
        self, source: Source, *, whole: bool, given: Callable[[np.ndarray], np.ndarray] = lambda ids: ids
    ) -> None:
        """``whole`` puts all special tokens around a text, for encoders; else only those in front of it.

        ``given`` says what the ids of a record are to ``source``, -1 where it has no such token.
        """
        self._source, self._whole, self._of_given = source, whole, given
        self._tokenizer = tokenizer_of(source)
        self._prefix = bos_prefix(self._tokenizer) if self._tokenizer is not None else ()
        self._template = _template(source)

    def of(self, record: Record, longest: int) -> np.ndarray:
        """int64 [T], 1 <= T <= ``longest``.

        Raises:
            RequestRefused: an id outside the vocabulary, a text for a model without a tokenizer, a chat for
                one without a template, or one that the template refuses.
        """
        content = record.content
        if isinstance(content, str):
            return self._text(content, longest, record.where)
        if isinstance(content[0], Mapping):
            return self._chat([m for m in content if isinstance(m, Mapping)], longest, record.where)
        return self._given(np.asarray(content, dtype=object), longest, record.where)

    def of_template(self) -> np.ndarray:
        """int64 [T]: what the chat template itself puts around messages; nothing without one."""
        written = []
        for messages in _CONVERSATIONS if self._template is not None else ():
            with suppress(RequestError):  # some allow no system message, or no second question
                assert self._template is not None
                written.append(self._template.render(messages, add_generation_prompt=True))
        found = [self._text(text, _EVERY, "chat template", special=False) for text in written]
        return np.concatenate(found) if found else np.empty(0, dtype=np.int64)

    def _text(self, text: str, longest: int, where: str, special: bool = True) -> np.ndarray:
        if self._tokenizer is None:
            raise RequestRefused(f"{where}: {self._source.ref} brings no {_TOKENIZER}: give `input_ids`.")
        self._tokenizer.no_truncation()
        if special and self._whole:
            self._tokenizer.enable_truncation(longest)
        found = self._tokenizer.encode(text, add_special_tokens=special and self._whole).ids
        prefix = self._prefix if special and not self._whole else ()
        return np.array([*prefix, *found][:longest], dtype=np.int64)

    def _chat(self, messages: list[Mapping[str, object]], longest: int, where: str) -> np.ndarray:
        if self._template is None:
            raise RequestRefused(f"{where}: {self._source.ref} brings no chat template: give `text` instead.")
        try:
            text = self._template.render(messages, add_generation_prompt=False)
        except RequestError as error:
            raise RequestRefused(f"{where}: {error}") from error
        return self._text(text, longest, where, special=False)

    def _given(self, ids: np.ndarray, longest: int, where: str) -> np.ndarray:
        size = self._source.config.get("vocab_size")
        most = size if isinstance(size, int) else 2**31
        found = self._of_given(ids)
        wrong = [i for i, own in zip(ids.tolist(), found.tolist(), strict=True) if not 0 <= own < most]
        if wrong:
            raise RequestRefused(
                f"{where}: `input_ids` holds {wrong[0]}, and the vocabulary of {self._source.ref} has {size} "
                "entries, without it: these ids are another model's, or of tokens that prune-vocabulary "
                "removed (give `text` then)."
            )
        return found[:longest].astype(np.int64)


def tokenizer_of(source: Source) -> Tokenizer | None:
    """The model's tokenizer, without the truncation and padding it may carry; None when it brings none."""
    stored = source.sidecars.get(_TOKENIZER)
    if stored is None:
        return None
    tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template(source: Source) -> ChatTemplate | None:
    """The chat template, read as the runtime will read it from the artifact."""
    if _TOKENIZER not in source.sidecars:
        return None
    with tempfile.TemporaryDirectory(prefix="onnxforge-template-") as temp:
        folder = Path(temp)
        for name in _CHAT:
            if name in source.sidecars:
                (folder / name).write_bytes(source.sidecars[name])
        try:
            return read_chat_template(folder, TextTokenizer(folder).special_tokens)
        except ArtifactError as error:
            raise RequestRefused(f"{source.ref}: {error}") from error
