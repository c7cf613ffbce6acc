"""A GGUF file as a source: config, weights and tokenizer all come out of the one file."""

import json
from pathlib import Path

from onnxforge.models.files import sha256
from onnxforge.models.gguf_config import architecture_of, rebuild_config
from onnxforge.models.gguf_file import read_gguf
from onnxforge.models.gguf_tensors import bind_weights
from onnxforge.models.gguf_tokenizer import stop_ids, tokenizer_files
from onnxforge.models.source import Json, Source, SourceKind


def open_gguf(path: Path, ref: str) -> Source:
    """Read a GGUF file; weights stay in it until they are asked for, and come out as float32.

    Raises:
        SourceError: not GGUF, truncated, or metadata that contradicts itself.
        UnsupportedModel: an architecture, quantization or tokenizer that cannot be reproduced.
    """
    real = path.resolve()
    file = read_gguf(real)
    architecture, header = architecture_of(file)
    config = rebuild_config(architecture, header)
    heads, context = header.whole("attention.head_count"), header.whole("context_length")
    weights = bind_weights(file, architecture, heads, header.whole("attention.head_count_kv", heads))
    sidecars = tokenizer_files(file, context)
    generation: dict[str, Json] = {
        name: config[name] for name in ("bos_token_id", "pad_token_id") if name in config
    }
    stops = stop_ids(file)
    if stops:
        generation["eos_token_id"] = stops[0] if len(stops) == 1 else [*stops]
    sidecars["generation_config.json"] = (json.dumps(generation, indent=2) + "\n").encode()
    return Source(
        ref=ref,
        kind=SourceKind.GGUF,
        config=config,
        weights=weights,
        sidecars=sidecars,
        digests={path.name: sha256(real)},
    )
