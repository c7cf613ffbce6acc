"""What calibration saw of a layer's keys or values, as they lie in the cache."""

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.cache_range"


def annotate_cache(value: ir.Value, largest: np.ndarray) -> None:
    """Leave on ``value`` (a present of [B, KV, T, D]) the largest magnitude per channel, float32 [KV, D]."""
    value.meta[_KEY] = largest


def cache_range_of(value: ir.Value) -> np.ndarray | None:
    """What was measured on ``value``, float32 [KV, D], if it was."""
    found = value.meta.get(_KEY)
    return found if isinstance(found, np.ndarray) else None
