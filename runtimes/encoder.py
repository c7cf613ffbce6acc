"""A loaded encoder: embeddings, class and token labels, masked words."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnxruntime
from tokenizers import Encoding

from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.encoder_settings import EncoderSettings
from onnxforge.runtimes.errors import ArtifactError, NumericalError, RequestError
from onnxforge.runtimes.pooling import normalized, pool
from onnxforge.runtimes.predictions import Prediction, classes, masked_words, token_labels
from onnxforge.runtimes.text_tokenizer import TextTokenizer

_KNOWN = ("input_ids", "attention_mask", "token_type_ids")


class Encoder:
    """A loaded encoder artifact; safe to share between threads."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        session: onnxruntime.InferenceSession,
        tokenizer: TextTokenizer,
        settings: EncoderSettings,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.settings = settings
        self._session: onnxruntime.InferenceSession | None = session
        self._inputs = tuple(item.name for item in session.get_inputs())
        outputs = {item.name: item for item in session.get_outputs()}
        self._output = next((name for name in ("logits", "last_hidden_state") if name in outputs), "")
        strange = sorted(set(self._inputs) - set(_KNOWN))
        if strange or not self._output:
            raise ArtifactError(
                f"{folder / manifest.graph}: not an encoder graph this runtime can feed: "
                f"unknown inputs {strange}, outputs {sorted(outputs)}; it needs last_hidden_state or logits."
            )
        width = outputs[self._output].shape[-1]
        self._width = width if isinstance(width, int) else 0

    def encode(
        self, texts: str | Iterable[str], *, normalize_embeddings: bool = False, batch_size: int = 32
    ) -> Floats:
        """Embeddings float32 [batch, dim], or [dim] for a single text.

        They are normalised when asked for, and always when the model's own pipeline ends in normalisation.
        """
        if self._output != "last_hidden_state":
            raise RequestError(
                f"{self.folder}: a {self.manifest.task} model has no embeddings; use logits or predict."
            )
        single = isinstance(texts, str)
        items = self._checked([texts] if isinstance(texts, str) else texts, batch_size)
        found = np.zeros((len(items), self._width), np.float32)
        for places, hidden, mask in self._batches(self._tokens(items), batch_size):
            if found.shape[1] != hidden.shape[2]:
                found = np.zeros((len(items), hidden.shape[2]), np.float32)
            found[places] = pool(hidden, mask, self.settings.pooling)
        if not np.isfinite(found).all():
            raise NumericalError(f"{self.folder}: the embeddings hold NaN or infinity.")
        if normalize_embeddings or self.settings.normalize:
            found = normalized(found)
        return found[0] if single else found

    def logits(self, texts: Iterable[str], *, batch_size: int = 32) -> list[Floats]:
        """Raw scores of each text: float32 [labels], or [tokens, labels or vocabulary] for token tasks."""
        return self._scores(self._tokens(self._checked(texts, batch_size)), batch_size)

    def predict(self, texts: Iterable[str], *, batch_size: int = 32) -> list[tuple[Prediction, ...]]:
        """What the model's task asks for, for each text.

        ``text-classification``: every label, likeliest first. ``token-classification``: the likeliest label
        of each token. ``fill-mask``: the five likeliest words for each mask token.
        """
        items = self._checked(texts, batch_size)
        encodings = self._tokens(items)
        scores = self._scores(encodings, batch_size)
        match self.manifest.task:
            case "text-classification":
                return [classes(row, text, self.settings) for row, text in zip(scores, items, strict=True)]
            case "token-classification":
                pairs = zip(encodings, scores, strict=True)
                return [token_labels(encoding, rows, self.settings) for encoding, rows in pairs]
            case "fill-mask":
                pairs = zip(encodings, scores, strict=True)
                return [masked_words(encoding, rows, self.tokenizer) for encoding, rows in pairs]
        raise RequestError(f"{self.folder}: a {self.manifest.task} model predicts nothing; use encode.")

    def close(self) -> None:
        """Release the session; requests that are running end normally."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked(self, texts: Iterable[str], batch_size: int) -> list[str]:
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise RequestError(f"Pass a list of texts, not {type(texts).__name__}.")
        items = list(texts)  # once: a generator can be read only once
        for place, item in enumerate(items):
            if not isinstance(item, str):
                raise RequestError(f"Pass a list of texts: item {place} is a {type(item).__name__}.")
        if not isinstance(batch_size, int) or batch_size < 1:
            raise RequestError(f"batch_size is {batch_size!r}; pass 1 or more.")
        return items

    def _tokens(self, texts: Sequence[str]) -> list[Encoding]:
        lower = self.settings.lower_case
        return self.tokenizer.encode_batch([text.lower() if lower else text for text in texts])

    def _scores(self, encodings: Sequence[Encoding], batch_size: int) -> list[Floats]:
        if self._output != "logits":
            raise RequestError(f"{self.folder}: a {self.manifest.task} model has no logits; use encode.")
        found: list[Floats] = [np.empty(0, np.float32)] * len(encodings)
        for places, logits, mask in self._batches(encodings, batch_size):
            for row, place in enumerate(places):
                scores = logits[row] if logits.ndim == 2 else logits[row, : int(mask[row].sum())]
                if not np.isfinite(scores).all():
                    raise NumericalError(f"{self.folder}: the logits hold NaN or infinity.")
                found[place] = scores
        return found

    def _batches(
        self, encodings: Sequence[Encoding], batch_size: int
    ) -> Iterator[tuple[list[int], Floats, Int64s]]:
        """Places in the input, model output and mask, batch by batch; longest first, so little is padded."""
        session = self._session
        if session is None:
            raise RequestError(f"{self.folder}: the model was closed; load it again.")
        order = sorted(range(len(encodings)), key=lambda place: -len(encodings[place].ids))
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            rows = [encodings[place] for place in places]
            width = max(len(rows[0].ids), 1)
            ids = np.full((len(rows), width), self.tokenizer.pad_id, np.int64)
            mask, types = np.zeros_like(ids), np.zeros_like(ids)
            for row, encoding in enumerate(rows):
                count = len(encoding.ids)
                ids[row, :count], types[row, :count], mask[row, :count] = encoding.ids, encoding.type_ids, 1
            feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
            output = session.run([self._output], {name: feeds[name] for name in self._inputs})[0]
            yield places, output.astype(np.float32, copy=False), mask
