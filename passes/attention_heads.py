"""Where the heads of an attention operand come from: through which reshapes, transposes and repeats.

Exporters split heads in many ways (Reshape + Transpose, one Transpose with the score transpose folded in,
flattened batch and head axes) and repeat grouped keys in more (Unsqueeze + Expand + Reshape, Tile). None of
these is recognised by its nodes. The chain is run on random numbers and the result compared with the one
arrangement that is meant::

    x [B, L, n*D] -- Reshape, Transpose, Expand, Mul by a number ... --> operand [B, H, L, D]

so a chain that scrambles heads is refused and a chain nobody has seen before is understood.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import onnx_ir as ir

from onnxforge.passes.matching import only_use
from onnxforge.passes.subgraph_probe import Probe, Unprobeable

_MOVES = frozenset(
    ["Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Tile", "Cast", "Slice"]
)
_SCALES = frozenset(("Mul", "Div"))
_LONGEST_CHAIN = 16


class Layout(Enum):
    """How a value holds heads."""

    FLAT = "[B, L, n*D]"
    TOKENS = "[B, L, n, D]"
    HEADS = "[B, n, L, D]"


@dataclass(frozen=True)
class HeadSource:
    """A value that holds the heads of an operand, and what lies between."""

    value: ir.Value
    layout: Layout
    heads: int
    head_size: int
    factor: float
    """The operand is this number times the heads of ``value``."""


@dataclass(frozen=True)
class Operand:
    """An operand of an attention product; ``transposed`` when its last two axes are [D, L] (keys)."""

    value: ir.Value
    heads: int
    transposed: bool = False


def sources(probes: tuple[Probe, ...], operand: Operand) -> Iterator[HeadSource]:
    """Values that provably hold the heads of ``operand``, the farthest upstream first.

    Probes of different sizes must agree, so that a factor that depends on a length is not taken for a number.
    """
    for value in reversed(tuple(_chain(operand.value, probes[0]))):
        found = [_compare(probe, operand, value) for probe in probes]
        first = found[0]
        if first is not None and all(item == first for item in found):
            yield first


def _chain(value: ir.Value, probe: Probe) -> Iterator[ir.Value]:
    """``value`` and what it is made of, as long as nodes only move or scale numbers."""
    current: ir.Value | None = value
    for _ in range(_LONGEST_CHAIN):
        if current is None:
            return
        yield current
        node = current.producer()
        if node is None:
            return
        single = node.op_type == "Concat" and len(node.inputs) == 1
        if node.op_type in _MOVES or single:
            current = node.inputs[0]
        elif node.op_type in _SCALES:
            current = _scaled(node, probe)
        else:
            return


def _scaled(node: ir.Node, probe: Probe) -> ir.Value | None:
    """The input that a Mul or Div scales by a number, or None."""
    for data, number in ((0, 1), (1, 0)) if node.op_type == "Mul" else ((0, 1),):
        scale, value = node.inputs[number], node.inputs[data]
        if scale is not None and value is not None and not probe.knows(value) and probe.knows(scale):
            return value if probe.value(scale).size == 1 else None
    return None


def _compare(probe: Probe, operand: Operand, value: ir.Value) -> HeadSource | None:
    try:
        shape, target = probe.shape(value), probe.shape(operand.value)
    except Unprobeable:
        return None
    length, size = (target[-1], target[-2]) if operand.transposed else (target[-2], target[-1])
    batch = probe.sizes.batch
    if not length or not size or np.prod(shape) % (batch * length * size):
        return None
    heads = int(np.prod(shape)) // (batch * length * size)
    layouts = {
        Layout.FLAT: (batch, length, heads * size),
        Layout.TOKENS: (batch, length, heads, size),
        Layout.HEADS: (batch, heads, length, size),
    }
    fitting = [layout for layout, dims in layouts.items() if dims == shape]
    if not heads or operand.heads % heads or not fitting:
        return None
    numbers = np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)
    try:
        got = probe.assuming({value: numbers}).value(operand.value)
    except Unprobeable:
        return None
    for layout in fitting:
        meant = np.repeat(to_heads(numbers, layout, heads), operand.heads // heads, axis=1)
        if operand.transposed:
            meant = meant.swapaxes(-1, -2)
        factor = _factor(got, meant.reshape(got.shape))
        if factor is not None:
            return HeadSource(value, layout, heads, size, factor)
    return None


def to_heads(array: np.ndarray, layout: Layout, heads: int) -> np.ndarray:
    """``array`` in ``layout`` as [B, n, L, D]."""
    if layout is Layout.HEADS:
        return array
    if layout is Layout.FLAT:
        array = array.reshape(*array.shape[:2], heads, -1)
    return array.swapaxes(1, 2)


def _factor(got: np.ndarray, meant: np.ndarray) -> float | None:
    """The number c for which ``got == c * meant``, to the precision of float32, or None."""
    peak = np.unravel_index(np.argmax(np.abs(meant)), meant.shape)
    ratio = float(got[peak]) / float(meant[peak])
    if ratio == 0 or not np.allclose(got, ratio * meant, rtol=1e-5, atol=1e-6 * abs(ratio)):
        return None
    return float(f"{ratio:.7g}")


def merged(probe: Probe, output: ir.Value, heads: int) -> ir.Value | None:
    """Downstream of ``output`` [B, H, S, D], the value [B, S, H*D] that merges its heads, or None."""
    try:
        shape = probe.shape(output)
        numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        batch, length = probe.sizes.batch, probe.sizes.sequence
        meant = numbers.reshape(batch, heads, length, -1).swapaxes(1, 2).reshape(batch, length, -1)
        assumed = probe.assuming({output: numbers})
        value, found = output, None
        for _ in range(_LONGEST_CHAIN):
            got = assumed.value(value)
            if got.shape == meant.shape and np.array_equal(got, meant):
                found = value
            node = only_use(value)
            if node is None or node.op_type not in _MOVES or node.inputs[0] is not value:
                break
            value = node.outputs[0]
    except Unprobeable:
        return None
    return found
