"""Nodes that something measured wants left out of quantization: the mark, and the reason. Never saved."""

import onnx_ir as ir

STATIC_W8A8 = "static W8A8"
"""What measures of a node's sensitivity speak of."""
_KEY, _STATIC = "onnxforge.kept_float", "onnxforge.kept_from_static"


def keep_float(node: ir.Node, reason: str, *, static_only: bool = False) -> None:
    """Ask the passes that quantize activations to leave ``node`` alone; with ``static_only``, those that give
    a whole tensor one grid."""
    node.meta[_STATIC if static_only else _KEY] = reason


def release(node: ir.Node) -> None:
    """Take the mark back, if there is one."""
    node.meta.pop(_KEY, None)
    node.meta.pop(_STATIC, None)


def kept_float(node: ir.Node, *, static: bool = True) -> str | None:
    """Why ``node`` is to stay float, or None; ``static`` says what asks: one grid for a whole tensor."""
    reason = node.meta.get(_KEY) or (node.meta.get(_STATIC) if static else None)
    return reason if isinstance(reason, str) else None
