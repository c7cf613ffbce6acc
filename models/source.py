"""A model as it was found: its configuration, lazy weights, tokenizer files and digests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

import onnx_ir as ir

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class SourceKind(StrEnum):
    """The form in which the model was found."""

    FOLDER = "hf-folder"
    GGUF = "gguf"
    ONNX = "onnx"


@dataclass(frozen=True)
class Source:
    """Everything that is known of a model before export. Weights are lazy: nothing large is in memory."""

    ref: str
    """What the user wrote: a path, ``org/name@revision``, or a demo name."""
    kind: SourceKind
    config: Mapping[str, Json]
    """The Hugging Face ``config.json``; for GGUF, rebuilt from the header; for ONNX, what stood beside it."""
    weights: Mapping[str, ir.TensorProtocol] = field(default_factory=dict)
    """Lazy tensors by Hugging Face parameter name (``model.layers.0.self_attn.q_proj.weight``)."""
    sidecars: Mapping[str, bytes] = field(default_factory=dict)
    """Files that travel into the artifact unchanged, by relative path: ``tokenizer.json``,
    ``tokenizer_config.json``, ``special_tokens_map.json``, ``chat_template.jinja``,
    ``generation_config.json``, ``1_Pooling/config.json``, ``modules.json`` ..."""
    graph: Path | None = None
    """The existing ``.onnx`` file, for :attr:`SourceKind.ONNX`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """sha256 (hex) of every file that was read, by file name."""
