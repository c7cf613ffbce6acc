"""Whether activations stay inside float16, for graphs that could not be run where they are meant to run.

On the CPU, ONNX Runtime computes most float16 operators in float32, so an overflow between two of them would
stay hidden in the quality numbers. Looked at one by one, every value is float16.
"""

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.structure_check import StructureCheck
from onnxforge.compiler.watched_values import watched_values

_LARGEST = float(np.finfo(np.float16).max)


def check_float16_range(session: GraphSession, ids: np.ndarray) -> StructureCheck | None:
    """The largest float16 activation on ``ids`` [1, S]; None for a graph without float16."""
    values = watched_values(session, _halves, ids)
    if not values:
        return None
    sizes = {name: _largest(value) for name, value in values.items() if value.size and not _is_mask(value)}
    if not sizes:
        return None
    name = max(sizes, key=lambda key: sizes[key])
    share = 100 * sizes[name] / _LARGEST
    return StructureCheck(
        rule="activations stay inside float16",
        found=f"largest {sizes[name]:.5g}, {share:.0f}% of its range, at {name} ({ids.size} tokens)",
        held=bool(np.isfinite(sizes[name])),
        required=True,
    )


def _largest(value: np.ndarray) -> float:
    largest = float(np.abs(value).max())
    return largest if np.isfinite(largest) else np.inf  # NaN is what infinities become


def _is_mask(value: np.ndarray) -> bool:
    """Nothing but zero and "minus infinity", which is no overflow but a mask that is added to scores."""
    return bool(((value == 0) | (value <= -_LARGEST)).all())


def _halves(model: ir.Model) -> list[ir.Value]:
    outputs = [output for node in model.graph for output in node.outputs if output.name]
    return [output for output in outputs if output.dtype is ir.DataType.FLOAT16]
