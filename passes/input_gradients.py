"""How much the loss hangs on each channel of what a matrix multiplies; on the value itself, never saved.

To first order, leaving out channel k of a value x changes the loss L by ``sum over tokens of x_k dL/dx_k``.
The mean of its absolute value over samples is the channel's Taylor importance (Molchanov et al. 2019,
1906.10771; for groups of a language model Ma et al. 2023, LLM-Pruner, 2305.11627). What belongs together adds
up: the importance of a head is the sum over its channels.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_KEY = "onnxforge.input_gradients"


@dataclass(frozen=True, eq=False)
class InputGradients:
    """Means over the samples of calibration, for a value [..., K].

    A division of the channels that is taken back in the matrix behind them leaves it as it is.
    """

    importance: np.ndarray
    """float32 [K]: the mean over samples of ``|sum over tokens of x_k dL/dx_k|``, in units of the loss."""
    samples: int
    """How many samples were averaged."""


def leave_gradients(value: ir.Value, found: InputGradients) -> None:
    """Leave what was measured on ``value``."""
    value.meta[_KEY] = found


def gradients_of(value: ir.Value | None) -> InputGradients | None:
    """What was measured on ``value``, if it was."""
    found = value.meta.get(_KEY) if value is not None else None
    return found if isinstance(found, InputGradients) else None


def forget_gradients(value: ir.Value) -> None:
    """Drop what was measured: the graph in front of ``value`` has changed, or its width."""
    value.meta.pop(_KEY, None)
