"""Rotary position embedding becomes one node with a table of cosines and sines."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import add_array, constant
from onnxforge.passes.matching import (
    CONTRIB,
    input_at,
    insert_after,
    int_attribute,
    is_op,
    make,
    rank,
    redirect,
    remove_dead,
    static_dim,
)
from onnxforge.passes.rotary_pattern import Rotation, match_rotation
from onnxforge.passes.rotary_table import NotATable, Table, tabulate

WHAT = "RotaryEmbedding"
CONTEXT_LENGTH = "onnxforge.context_length"


@dataclass(frozen=True)
class FuseRotary(GraphPass):
    """Fuse rotary embeddings whose angles depend on the position alone.

    ::

        x * cos + rotate(x) * sin   ->   com.microsoft RotaryEmbedding(x, position_ids, cos_cache, sin_cache)

    The node that this pass leaves, and that FuseAttention builds on:

    * ``input``: [batch, heads, sequence, head_dim], always rank 4; the output has the same shape;
    * ``position_ids``: int64 [batch, sequence], the value the graph computed its angles from (for exported
      decoders the graph input of that name);
    * ``cos_cache``, ``sin_cache``: float initializers [context_length, rotary_dim / 2] named
      ``rotary.cos`` and ``rotary.sin`` (``rotary.cos_1`` ... for further distinct tables), shared by all
      nodes with the same angles, any attention scaling multiplied in;
    * attributes ``interleaved`` (0 half rotation, 1 even/odd pairs), and for partial rotation
      ``rotary_embedding_dim`` with ``num_heads``; absent where the whole head rotates.

    The tables are computed by running the graph's own subgraph on every position, and checked against it on
    random positions (see :mod:`onnxforge.passes.rotary_table`). Angles that depend on more than the position
    stay as they are, with the reason in a note. Existing RotaryEmbedding nodes of opset 23 whose angles are
    computed in the graph are brought to the same form.

    Source: Su et al. 2021 (RoFormer); ONNX Runtime's contrib operator documentation.
    """

    summary: ClassVar[str] = "RotaryEmbedding with shared tables, where angles depend on the position alone"

    max_positions: int = 0
    """Rows of the tables; 0 takes the context length recorded with the model."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every rotation found; near-misses are noted with the reason."""
        found = [rotation for node in model.graph if (rotation := _rotation(node)) is not None]
        if not found:
            return ir.passes.PassResult(model, modified=False)
        context = self.max_positions or int(model.metadata_props.get(CONTEXT_LENGTH, "0"))
        if context <= 0:
            reason = f"the context length is not known; set max_positions, or the metadata {CONTEXT_LENGTH}"
            notes.near_miss(WHAT, found[0].result.name, reason)
            return ir.passes.PassResult(model, modified=False)
        tables = _Tables(model.graph, context, model.opset_imports)
        changed = [_rewrite(rotation, tables) for rotation in found]
        if any(changed):
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=any(changed))


def _rotation(node: ir.Node) -> Rotation | None:
    return _standard(node) if is_op(node, WHAT) else match_rotation(node)


def _standard(node: ir.Node) -> Rotation | None:
    """An opset-23 RotaryEmbedding of rank 4, with angles per token or with tables and positions."""
    data, cos, sin = (input_at(node, index) for index in range(3))
    head = static_dim(data, -1)
    if data is None or cos is None or sin is None or head is None or rank(data) != 4:
        return None
    dim = int_attribute(node, "rotary_embedding_dim", 0) or head
    return Rotation(data, cos, sin, node.outputs[0], bool(int_attribute(node, "interleaved", 0)), dim, head)


@dataclass
class _Tables:
    """Tables made so far, by the factors they stand for and by content. Lives for one call."""

    graph: ir.Graph
    context: int
    opsets: Mapping[str, int]
    _made: dict[tuple[ir.Value, bool, int], tuple[ir.Value, ir.Value]] = field(default_factory=dict)
    _stored: dict[bytes, ir.Value] = field(default_factory=dict)
    _refused: dict[ir.Value, NotATable] = field(default_factory=dict)

    def initializer(self, factor: ir.Value, name: str, rotation: Rotation) -> tuple[ir.Value, ir.Value]:
        """The positions and the [context, rotary_dim / 2] initializer of one factor.

        Raises:
            NotATable: see :func:`tabulate`; also where the two halves of a row differ.
        """
        key = (factor, rotation.interleaved, rotation.rotary_dim)
        if factor in self._refused:
            raise self._refused[factor]
        if key not in self._made:
            try:
                table = tabulate(factor, self.context, self.opsets)
                rows = _half(table, rotation)
            except NotATable as reason:
                self._refused[factor] = reason
                raise
            content = name.encode() + rows.tobytes()
            if content not in self._stored:
                dtype = rotation.data.dtype or ir.DataType.FLOAT
                self._stored[content] = add_array(self.graph, name, rows.astype(dtype.numpy()))
            self._made[key] = (table.positions, self._stored[content])
        return self._made[key]


def _half(table: Table, rotation: Rotation) -> np.ndarray:
    """One column per pair. A model writes each angle twice; a standard node once."""
    rows, dim = table.rows, rotation.rotary_dim
    if rows.shape[1] == dim // 2:
        return np.ascontiguousarray(rows)
    if rows.shape[1] != dim:
        raise NotATable(f"the factor is {rows.shape[1]} wide, the rotation {dim}")
    if rotation.interleaved:
        first, second = rows[:, 0::2], rows[:, 1::2]
    else:
        first, second = rows[:, : dim // 2], rows[:, dim // 2 :]
    if not np.array_equal(first, second):
        raise NotATable("the two elements of a pair turn by different angles")
    return np.ascontiguousarray(first)


def _rewrite(rotation: Rotation, tables: _Tables) -> bool:
    last = rotation.result.producer()
    heads = static_dim(rotation.data, 1)
    if last is None or last.graph is None:
        return False
    name = _scope(last)
    try:
        positions, cos, sin = _operands(rotation, last, tables)
        _check_layout(rotation, positions)
    except NotATable as reason:
        notes.near_miss(WHAT, name, str(reason))
        return False
    attributes: dict[str, int | float | str] = {"interleaved": int(rotation.interleaved)}
    if rotation.rotary_dim != rotation.head_dim:
        if heads is None:
            notes.near_miss(WHAT, name, "partial rotation needs a known number of heads")
            return False
        attributes |= {"rotary_embedding_dim": rotation.rotary_dim, "num_heads": heads}
    inputs = (rotation.data, positions, cos, sin)
    node = make(WHAT, inputs, like=rotation.result, name=name, domain=CONTRIB, attributes=attributes)
    insert_after(last, node)
    redirect(rotation.result, node.outputs[0])
    remove_dead([last])
    notes.match(WHAT, name)
    return True


def _operands(rotation: Rotation, last: ir.Node, tables: _Tables) -> tuple[ir.Value, ir.Value, ir.Value]:
    given = input_at(last, 3) if is_op(last, WHAT) else None
    if given is not None:
        if constant(rotation.cos) is None or constant(rotation.sin) is None:
            raise NotATable("its tables are computed in the graph")
        return given, rotation.cos, rotation.sin
    positions, cos = tables.initializer(rotation.cos, "rotary.cos", rotation)
    others, sin = tables.initializer(rotation.sin, "rotary.sin", rotation)
    if positions is not others:
        raise NotATable(f"cos follows {positions.name!r} and sin follows {others.name!r}")
    return positions, cos, sin


def _check_layout(rotation: Rotation, positions: ir.Value) -> None:
    """The sequence has to be axis 2 of the data, and every row of the batch has its own positions."""
    data, ids = rotation.data.shape, positions.shape
    assert data is not None
    assert ids is not None
    if data[2] != ids[1] or data[0] != ids[0]:
        raise NotATable(f"positions {ids} do not run along [batch, heads, sequence, dim] = {data}")


def _scope(node: ir.Node) -> str:
    """``/layers.0/self_attn/Add`` names the node ``/layers.0/self_attn/Add_RotaryEmbedding``."""
    return f"{node.name or node.outputs[0].name}_{WHAT}"
