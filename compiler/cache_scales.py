"""What one step of an int8 cache is worth: the scales that the graph's attention operators hold."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

_SIDES = ((1, 12), (2, 13))
"""Of a GroupQueryAttention: output of a present, input of its scale."""


def cache_scales(graph: Path) -> Mapping[str, np.ndarray]:
    """By the name of a present, float32 [1] or [1, KV, 1, D]; empty for a cache in floating point."""
    found = {}
    for node in ir.load(graph).graph:
        if node.op_type != "GroupQueryAttention":
            continue
        for present, scale in _SIDES:
            value = node.inputs[scale] if scale < len(node.inputs) else None
            if value is not None and value.const_value is not None:
                found[node.outputs[present].name or ""] = value.const_value.numpy()
    return found
