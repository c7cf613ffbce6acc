"""Proving that cos and sin are a function of the position alone, and tabulating that function.

The proof is by evaluation: the subgraph between the position ids and the factor is run on every position of
the context, which gives the table, and then on random positions in random order, where looking the position
up in the table has to give the same factors. What depends on more than the position itself (dynamic NTK, the
long factors of longrope) fails that second run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.dims import Dim
from onnxforge.passes.folding import run_node
from onnxforge.passes.matching import is_op, producer, rank
from onnxforge.passes.shapes import Facts

TOLERANCE = 1e-6
_TABLE_LIMIT = 2**26
_INTEGER = (ir.DataType.INT64, ir.DataType.INT32)


class NotATable(Exception):
    """The factor is not a function of the position; the message says why."""


@dataclass(frozen=True)
class Table:
    """``factor == rows[positions]`` for every position below ``len(rows)``."""

    positions: ir.Value
    """int64 [batch, sequence]."""
    rows: np.ndarray
    """float32 [context_length, width]."""


def tabulate(factor: ir.Value, context_length: int, opsets: Mapping[str, int]) -> Table:
    """The table behind ``factor``, a float tensor that broadcasts over [batch, 1, sequence, width].

    Raises:
        NotATable: other inputs take part, or a lookup does not reproduce the factor to 1e-6.
    """
    positions = _positions(factor)
    run = _Run(positions, context_length, opsets)
    rows = _as_rows(run.factor(factor, np.arange(context_length, dtype=np.int64)[None]))
    if rows.shape[0] != context_length or rows.size > _TABLE_LIMIT:
        raise NotATable(f"one row per position was expected, and the factor has shape {rows.shape}")
    rng = np.random.default_rng(0)
    for limit in (min(16, context_length), context_length):
        some = rng.integers(0, limit, size=(2, min(64, context_length)), dtype=np.int64)
        got = run.factor(factor, some)
        meant = rows[some]
        got = (
            got.reshape(got.shape[0], got.shape[-2], got.shape[-1])
            if got.ndim == 4 and got.shape[1] == 1
            else got
        )
        if got.shape != meant.shape:
            raise NotATable(f"for positions {some.shape} the factor has shape {got.shape}, not {meant.shape}")
        error = float(np.abs(got - meant).max())
        if not error <= TOLERANCE:
            raise NotATable(
                f"it depends on more than the position (a table lookup is off by {error:.2g}), as rotary "
                "scaling that follows the length of the sequence does"
            )
    return Table(positions, rows.astype(np.float32))


def _as_rows(array: np.ndarray) -> np.ndarray:
    if array.ndim < 2 or any(size != 1 for size in array.shape[:-2]):
        raise NotATable(f"one row per position was expected, and the factor has shape {array.shape}")
    return array.reshape(array.shape[-2:])


def _positions(factor: ir.Value) -> ir.Value:
    """The one integer tensor [batch, sequence] that ``factor`` is computed from."""
    anchors = {_climb(value) for value in _integer_sources(factor)}
    if len(anchors) != 1:
        names = ", ".join(sorted(str(value.name) for value in anchors)) or "none"
        raise NotATable(f"one tensor of positions was expected, found: {names}")
    anchor = anchors.pop()
    if rank(anchor) != 2:
        raise NotATable(f"positions {anchor.name!r} should be [batch, sequence], shape is {anchor.shape}")
    return anchor


def _integer_sources(factor: ir.Value) -> Iterator[ir.Value]:
    """Where the walk upwards leaves floating point: Casts of integers, and indices into a constant."""
    pending, seen = [factor], {factor}
    while pending:
        value = pending.pop()
        node = value.producer()
        if node is None:
            if constant(value) is None:
                raise NotATable(f"it depends on {value.name!r}, which is not the position")
            continue
        if is_op(node, "Cast") and node.inputs[0] is not None and node.inputs[0].dtype in _INTEGER:
            yield node.inputs[0]
            continue
        if is_op(node, "Gather") and constant(node.inputs[0]) is not None and node.inputs[1] is not None:
            yield node.inputs[1]
            continue
        for item in node.inputs:
            if item is not None and item not in seen and item.dtype not in _INTEGER:
                seen.add(item)
                pending.append(item)


def _climb(value: ir.Value) -> ir.Value:
    """Undo the Unsqueeze and Expand that bring [batch, sequence] to the rank of the product."""
    while (node := producer(value, "Unsqueeze", "Expand", "Identity")) is not None and rank(value) != 2:
        above = node.inputs[0]
        if above is None or (rank(above) or 0) < 2:
            break
        value = above
    return value


class _Run:
    """Evaluation of the subgraph below the positions, with ONNX's reference operators."""

    def __init__(self, positions: ir.Value, context_length: int, opsets: Mapping[str, int]) -> None:
        self._positions = positions
        self._context = context_length
        self._opsets = opsets

    def factor(self, factor: ir.Value, positions: np.ndarray) -> np.ndarray:
        """The factor for ``positions`` (int64 [batch, sequence]), float32."""
        known: dict[ir.Value, np.ndarray] = {self._positions: positions}
        try:
            return self._value(factor, known, positions.shape)
        except NotATable:
            raise
        except Exception as problem:
            raise NotATable(f"its subgraph could not be evaluated: {problem}") from problem

    def _value(
        self, value: ir.Value, known: dict[ir.Value, np.ndarray], extent: tuple[int, ...]
    ) -> np.ndarray:
        if value in known:
            return known[value]
        tensor, node = constant(value), value.producer()
        if tensor is not None:
            known[value] = tensor.numpy()
        elif node is None:
            raise NotATable(f"it depends on {value.name!r}, which is not the position")
        elif is_op(node, "Shape") and node.inputs[0] not in known:
            known[value] = self._shape(node, extent)
        else:
            inputs = [self._value(item, known, extent) if item is not None else None for item in node.inputs]
            for output, array in zip(node.outputs, run_node(node, inputs, self._opsets), strict=False):
                known[output] = array
        return known[value]

    def _shape(self, node: ir.Node, extent: tuple[int, ...]) -> np.ndarray:
        """A shape taken from another tensor: its named sizes follow from those of the positions."""
        facts = Facts()
        names, dims = facts.shape(self._positions) or (), facts.shape(node.inputs[0])
        if dims is None:
            raise NotATable(f"it depends on the shape that {node.name!r} takes, which is not known")
        sizes = {name: size for dim, size in zip(names, extent, strict=False) for name in dim.symbols}
        end = node.attributes["end"].as_int() if "end" in node.attributes else len(dims)
        start = node.attributes["start"].as_int() if "start" in node.attributes else 0
        return np.array([self._size(dim, sizes) for dim in dims[start:end]], dtype=np.int64)

    def _size(self, dim: Dim, sizes: Mapping[str, int]) -> int:
        """Sizes that the positions do not decide (the length of a cache) are taken as the whole context."""
        every = {name: sizes.get(name, self._context) for name in dim.symbols}
        return dim.evaluate(every) or 0
