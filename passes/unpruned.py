"""The model as it was before anything was pruned: what scores and recovery compare with. Never saved.

Nodes and values keep their names while a graph is pruned, so that a name finds its counterpart.
"""

import onnx_ir as ir

from onnxforge.passes.forget_measured import forget_measured

_KEY = "onnxforge.unpruned"


def remember_unpruned(model: ir.Model) -> None:
    """Keep a copy of ``model``'s structure, once: tensors are shared, so it costs milliseconds.

    Without what was measured of its values, which would stay on disk as long as the copy does.
    """
    if _KEY not in model.meta:
        whole = model.clone()
        forget_measured(whole.graph)
        model.meta[_KEY] = whole


def unpruned(model: ir.Model) -> ir.Model | None:
    """``model`` before the first pass that pruned it; None where none has."""
    found = model.meta.get(_KEY)
    return found if isinstance(found, ir.Model) else None
