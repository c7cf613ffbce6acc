"""A graph under examination: one ONNX Runtime session, fed by name with whole sequences and an empty cache.

The runtime decides how an artifact is *used*; a proof must not depend on that, so it talks to ONNX Runtime
itself and asks for any value by name.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import EvaluationError
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.decoder_graph import DecoderGraph, read_graph
from onnxforge.runtimes.session import device_of, open_session, options_for, provider_name
from onnxforge.runtimes.strict_json import read_optional_json


def threads() -> int:
    """Cores this process may run on: what every measurement of a proof uses."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class GraphSession:
    """The graph of one artifact folder, ready to answer."""

    def __init__(self, folder: Path, provider: str | None = None) -> None:
        """Open ``folder``'s graph the way its manifest says, or on another ``provider``.

        Raises:
            RequestError, ArtifactError: the provider is not here, or the graph does not load.
        """
        self.folder = folder
        self.manifest = read_manifest(folder)
        path = folder / self.manifest.graph
        self.provider = provider_name(provider or self.manifest.provider)
        own = options_for(self.provider, self.manifest)
        self._session = open_session(path, self.provider, self.manifest.session, threads(), own)
        self._inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    @property
    def is_decoder(self) -> bool:
        """Whether the graph carries a key-value cache."""
        return any(name.startswith("past_key_values.") for name in self._inputs)

    @property
    def quantized_cache(self) -> bool:
        """Whether past and present are integers."""
        return any(i.type == "tensor(int8)" for n, i in self._inputs.items() if n.startswith("past_"))

    def decoder_graph(self) -> DecoderGraph:
        """The runtime's view of this session, for what has to be decoded step by step.

        Raises:
            ArtifactError: it is no decoder that the runtime can feed.
        """
        size = read_optional_json(self.folder / "config.json").get("vocab_size")
        vocabulary = size if isinstance(size, int) else None
        context, shared = self.manifest.context_length, self.manifest.shared_cache
        return read_graph(self._session, device_of(self.provider), context, shared, vocabulary)

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be scored."""
        return (self.folder / "tokenizer.json").is_file()

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that travels with the artifact, without the truncation and padding it may carry.

        Raises:
            EvaluationError: the folder has none.
        """
        if not self.has_tokenizer:
            raise EvaluationError(f"{self.folder} has no tokenizer.json, so text cannot be scored.")
        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None = None, fetch: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run int64 ``ids`` [B, S] from an empty cache; ``mask`` int64 [B, S] marks real tokens.

        Returns the fetched outputs by name (default: all); floating point comes back as float32.
        """
        wanted = list(fetch) if fetch is not None else list(self.outputs)
        values = self._session.run(wanted, self.feeds(ids, np.ones_like(ids) if mask is None else mask))
        return {
            name: value.astype(np.float32) if value.dtype == np.float16 else value
            for name, value in zip(wanted, values, strict=True)
        }

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [S, V]: the next-token logits at every position of one sequence ``ids`` [1, S]."""
        logits: np.ndarray = self.run(ids, fetch=["logits"])["logits"][0]
        return logits

    def feeds(self, ids: np.ndarray, mask: np.ndarray) -> Mapping[str, np.ndarray]:
        """Every input by name: ids, mask, positions, zero token types, and an empty cache."""
        return whole_sequence_feeds(self._session.get_inputs(), ids, mask, str(self.folder))
