"""Nodes that something measured wants left out of quantization: the mark, and the reason. Never saved."""

import onnx_ir as ir

STATIC_W8A8 = "static W8A8"
"""What measures of a node's sensitivity speak of."""
_KEY = "onnxforge.kept_float"


def keep_float(node: ir.Node, reason: str) -> None:
    """Ask the passes that quantize activations to leave ``node`` alone."""
    node.meta[_KEY] = reason


def release(node: ir.Node) -> None:
    """Take the mark back, if there is one."""
    node.meta.pop(_KEY, None)


def kept_float(node: ir.Node) -> str | None:
    """Why ``node`` is to stay float, or None."""
    reason = node.meta.get(_KEY)
    return reason if isinstance(reason, str) else None
