"""The rotary position encoding of a GGUF file, as Hugging Face's ``rope_theta`` and ``rope_scaling``."""

import numpy as np

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.gguf_file import GgufFile
from onnxforge.models.gguf_tensors import GgufBlocks
from onnxforge.models.source import Json

_DEFAULT_BASE = 10000.0
_FREQUENCIES = "rope_freqs.weight"
_LLAMA3_LOW, _LLAMA3_HIGH, _LLAMA3_CONTEXT = 1.0, 4.0, 8192
"""Llama 3.1's constants; a GGUF file holds only the factors they lead to."""


def rope_config(file: GgufFile, name: str, head_dim: int) -> dict[str, Json]:
    """``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling`` where they apply.

    Raises:
        UnsupportedModel: a scaling that has no exact Hugging Face counterpart.
    """
    metadata = file.metadata
    base = metadata.get(f"{name}.rope.freq_base", _DEFAULT_BASE)
    theta = float(base) if isinstance(base, int | float) else _DEFAULT_BASE
    result: dict[str, Json] = {"rope_theta": theta}
    turned = metadata.get(f"{name}.rope.dimension_count", head_dim)
    if isinstance(turned, int) and turned != head_dim:
        result["partial_rotary_factor"] = turned / head_dim
    rotated = turned if isinstance(turned, int) else head_dim
    if scaling := _scaling(file, name, theta, rotated):
        result["rope_scaling"] = scaling
    return result


def _scaling(file: GgufFile, name: str, theta: float, rotated: int) -> dict[str, Json] | None:
    if _FREQUENCIES in file.tensors:
        return _llama3(file, theta, rotated)
    if "rope_factors_long.weight" in file.tensors:
        raise UnsupportedModel(
            f"{file.path}: its rotary factors (rope_factors_long, rope_factors_short) follow the length of "
            "the prompt, and a graph holds one table. Use a model of the family with a short context (4k)."
        )
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none")
    factor = file.metadata.get(f"{name}.rope.scaling.factor", 1.0)
    if kind == "none" or not isinstance(factor, int | float) or factor in (0.0, 1.0):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    original = file.metadata.get(f"{name}.rope.scaling.original_context_length")
    if kind == "yarn" and isinstance(original, int):
        return {"rope_type": "yarn", "factor": float(factor), "original_max_position_embeddings": original}
    raise UnsupportedModel(
        f"{file.path}: rope scaling {kind!r} with factor {factor} cannot be reproduced. Use the Hugging Face "
        "folder of this model."
    )


def _llama3(file: GgufFile, theta: float, rotated: int) -> dict[str, Json] | None:
    """Llama 3.1 scaling: accepted only if its published constants give the very factors of the file."""
    stored = GgufBlocks(file.path, file.tensors[_FREQUENCIES]).values().reshape(-1)
    factor = float(stored.max(initial=1.0))
    if (stored == 1).all():
        return None
    wavelength = 2 * np.pi * theta ** (np.arange(0, rotated, 2) / rotated)
    ratio = np.clip((_LLAMA3_CONTEXT / wavelength - _LLAMA3_LOW) / (_LLAMA3_HIGH - _LLAMA3_LOW), 0.0, 1.0)
    expected = 1 / ((1 - ratio) / factor + ratio)
    if stored.shape != expected.shape or not np.allclose(stored, expected, rtol=1e-4):
        raise UnsupportedModel(
            f"{file.path}: the rotary factors in rope_freqs.weight are not those of Llama 3.1 scaling. Use "
            "the Hugging Face folder of this model."
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": _LLAMA3_LOW,
        "high_freq_factor": _LLAMA3_HIGH,
        "original_max_position_embeddings": _LLAMA3_CONTEXT,
    }
