"""A decoder that can leave some of its own layers out: the draft of self-speculative decoding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes import notes
from onnxforge.passes.base import DerivingPass, PassRefused
from onnxforge.passes.constants import add_array, constant, readable
from onnxforge.passes.matching import CONTRIB, input_at, is_op, only_use, rank
from onnxforge.passes.residual_branches import ResidualBranch, residual_branches

WHAT = "skippable branch"
LAYER_SKIP, CHOSEN = "layer skip", "chosen"
"""What measures of a set of branches speak of, and the outcome of the one that is taken."""
SKIP = "skip_layers"
"""Optional input, int64 [switches]: 1 leaves the branches of that switch out, 0 (the default) runs them."""
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
_RANK = 3
_POSITIONS, _POSITIONS_CONTRIB = 3, 1
"""Which input of RotaryEmbedding holds position_ids."""
_ROWS_IN = 3
"""The first inputs of GroupQueryAttention (query, key, value) have a row per token."""
_MARK = "onnxforge.skipped"


def mark_skipped(join: ir.Node, reason: str) -> None:
    """Have ``skip-layers`` leave out the branch that ends in this Add, for ``reason``. Never saved."""
    join.meta[_MARK] = reason


@dataclass(frozen=True)
class SkipLayers(DerivingPass):
    """Derive the same decoder with one switch more: draft without some attentions and MLPs.

    ::

        stream ─ norm ─ Slice(0:rows) ─ MatMul ... MatMul ─ Pad(to n) ─ Add ─ stream
                          rows = n, or 0 where skip_layers is set

    A branch that is left out computes on no rows at all, so its weights are not read; zeros are what it adds
    to the stream. One session serves both forms: there is no second copy of a weight, nor of what ONNX
    Runtime packs of it. With ``skip_layers`` at its default the numbers are those of the plain graph, bit for
    bit: slices and pads copy, and stand where they part no two nodes that fuse.

    The cache is one as well: a draft's tokens read what the whole model wrote for the tokens before them.
    They write into lines behind those; a skipped attention, which runs on zeros, writes zeros there. The step
    that verifies them writes the true ones.

    Source: Zhang et al. 2023, Draft & Verify (2309.08168), who choose the branches by search as
    ``search-skipped`` does.
    """

    file: ClassVar[str] = "onnx/model_skip.onnx"
    summary: ClassVar[str] = "a second graph that can leave layers out, to draft for itself"

    branches: str = ""
    """Numbers of residual branches in the graph's order, joined by ``+``: ``10+12+56``, or ``all``. Empty:
    those that a search has marked."""
    separately: bool = False
    """A switch for each, for a search."""

    def requires(self, model: ir.Model) -> None:
        """Refuse what cannot be left out.

        Raises:
            PassRefused: a branch that is not there, or that mixes what has a row per token from elsewhere; no
                branch at all; a graph whose residual stream was not found.
        """
        self._chosen(model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Build the second model; ``model`` is only read."""
        chosen = self._chosen(model)
        derived = model.clone()
        found = residual_branches(derived.graph)
        _Skipping(derived.graph, len(chosen) if self.separately else 1).add([found[i] for i in chosen])
        common.NameFixPass()(derived)
        return ir.passes.PassResult(derived, modified=True)

    def _chosen(self, model: ir.Model) -> list[int]:
        found = residual_branches(model.graph)
        if not found:
            raise PassRefused(
                f"{self.text()}: no Add was found through which the logits hang on a residual stream alone; "
                "the layers of this graph cannot be told apart."
            )
        if not self.branches:
            marked = [i for i, branch in enumerate(found) if _MARK in branch.join.meta]
            if not marked:
                raise PassRefused(
                    f"{self.text()}: no branch is marked. Run search-skipped before it, or name branches: "
                    f"{self.pass_name()}{{branches=10+12}}."
                )
            return marked
        if self.branches == "all":
            return list(skippable(model.graph))
        words = self.branches.split("+")
        if not all(word.isdecimal() and int(word) < len(found) for word in words):
            raise PassRefused(
                f"{self.text()}: branches are numbers from 0 to {len(found) - 1} joined by +, or all."
            )
        for number in map(int, words):
            if problem := _obstacle(found[number]):
                raise PassRefused(f"{self.text()}: branch {number} cannot be left out: {problem}.")
        return sorted({int(word) for word in words})


def skippable(graph: ir.Graph) -> tuple[int, ...]:
    """The numbers of the residual branches that can be left out."""
    return tuple(i for i, branch in enumerate(residual_branches(graph)) if not _obstacle(branch))


def _obstacle(branch: ResidualBranch) -> str:
    """Why ``branch`` cannot run on no rows; empty where it can."""
    inside = set(branch.nodes)
    if rank(branch.stream) not in (None, _RANK):
        return f"{branch.stream.name} is not [batch, tokens, width]"
    for node in branch.nodes:
        if is_op(node, "GroupQueryAttention", domain=CONTRIB):
            continue
        if is_op(node, "Reshape") and _open_reshape(node):
            return f"{node.name} works out a size from the number of elements, which may be none"
        if "Attention" in node.op_type:
            return (
                f"{node.name} is {node.op_type}, and only GroupQueryAttention is known to take zeros instead"
            )
        for value in node.inputs:
            if value is None or value is branch.stream or value.producer() in inside:
                continue
            if not _constant(value) and value is not _positions(node):
                return f"{node.name} reads {value.name}, which has a row per token and comes from elsewhere"
    return ""


def _positions(node: ir.Node) -> ir.Value | None:
    """A rotation's position_ids [batch, tokens], which can be cut as rows are; None for other nodes."""
    if node.op_type != "RotaryEmbedding":
        return None
    return input_at(node, _POSITIONS_CONTRIB if node.domain == CONTRIB else _POSITIONS)


def _open_reshape(node: ir.Node) -> bool:
    """Whether a Reshape has a -1 that no static dimension stands for: on no elements it has no answer."""
    shape = readable(node.inputs[1])
    found = node.outputs[0].shape
    return shape is None or any(
        size == -1 and (found is None or not isinstance(found[axis], int)) for axis, size in enumerate(shape)
    )


def _constant(value: ir.Value) -> bool:
    """Whether it follows from weights alone."""
    pending, seen = [value], {value}
    while pending:
        item = pending.pop()
        if item.is_graph_input() and not item.is_initializer():
            return False
        node = item.producer()
        new = [] if node is None else [v for v in node.inputs if v is not None and v not in seen]
        seen.update(new)
        pending += new
    return True


def _before_bias(branch: ResidualBranch) -> tuple[ir.Value, ir.Node]:
    """Where a branch's rows become whole again, and who reads them: in front of the last bias.

    ONNX Runtime fuses that one with the residual Add and a norm behind, in another order of addition. So a
    branch that is left out adds its bias, which is no loss: a search judges what it finds.
    """
    value, reader = branch.output, branch.join
    node = value.producer()
    if is_op(node, "Add") and node is not None and only_use(value) is reader:
        computed = [item for item in node.inputs if item is not None and constant(item) is None]
        if len(computed) == 1:
            return computed[0], node
    return value, reader


class _Skipping:
    """Puts the switches into a graph. Lives for one call."""

    def __init__(self, graph: ir.Graph, switches: int) -> None:
        self._graph = graph
        ids = next(value for value in graph.inputs if value.name == "input_ids")
        off = ir.tensor(np.zeros(switches, np.int64), name=SKIP)
        skip = ir.Value(
            name=SKIP, shape=ir.Shape([switches]), type=ir.TensorType(ir.DataType.INT64), const_value=off
        )
        graph.inputs.append(skip)
        graph.register_initializer(skip)
        self._none = add_array(graph, f"{SKIP}/none", np.array([0], np.int64))
        self._one = add_array(graph, f"{SKIP}/one", np.array([1], np.int64))
        first = ir.node("Shape", [ids], {"start": 1, "end": 2})
        run = ir.node("Sub", [self._one, skip])
        rows = ir.node("Mul", [run.outputs[0], first.outputs[0]])
        missing = ir.node("Sub", [first.outputs[0], rows.outputs[0]])
        self._early: list[ir.Node] = []
        for node, name in ((first, "tokens"), (run, "run"), (rows, "rows"), (missing, "missing")):
            self._name(node, name)
        self._rows = self._split(rows.outputs[0], switches)
        self._pads = [
            self._concat(each, i) for i, each in enumerate(self._split(missing.outputs[0], switches))
        ]
        graph.insert_before(graph[0], self._early)

    def add(self, branches: Sequence[ResidualBranch]) -> None:
        """Make ``branches`` skippable: by a switch each, or by the one."""
        for place, branch in enumerate(branches):
            place = min(place, len(self._rows) - 1)
            self._add(branch, self._rows[place], self._pads[place])
            notes.match(WHAT, branch.join.name)

    def _add(self, branch: ResidualBranch, rows: ir.Value, pads: ir.Value) -> None:
        inside = set(branch.nodes)
        for node in branch.nodes:
            if node.op_type in _NORMS and node.inputs[0] is branch.stream:
                self._cut(node.outputs[0], inside, rows)  # behind it: an Add and its norm fuse
                continue
            if branch.stream in node.inputs:
                self._cut(branch.stream, {node}, rows)
            if is_op(node, "Reshape"):
                self._close(node)
            elif (positions := _positions(node)) is not None:
                self._cut(positions, {node}, rows)
            elif is_op(node, "GroupQueryAttention", domain=CONTRIB):
                for index, value in enumerate(node.inputs[:_ROWS_IN]):
                    if value is not None:
                        node.replace_input_with(index, self._pad(value, pads, before=node))
                self._cut(node.outputs[0], inside, rows)
        value, reader = _before_bias(branch)
        padded = self._pad(value, pads, before=reader)
        for index, each in enumerate(reader.inputs):
            if each is value:
                reader.replace_input_with(index, padded)
        self._forget_tokens(branch, reader)

    def _forget_tokens(self, branch: ResidualBranch, end: ir.Node) -> None:
        """ONNX Runtime plans memory by the names of dimensions: here the tokens' name is no longer true."""
        for node in branch.nodes:
            if node is end:
                break
            keeps = is_op(node, "GroupQueryAttention", domain=CONTRIB)
            keeps = keeps or (node.op_type in _NORMS and node.inputs[0] is branch.stream)
            for value in () if keeps else node.outputs:
                if value.shape is not None:
                    value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])

    def _close(self, reshape: ir.Node) -> None:
        """Write sizes where a Reshape would work them out from the number of elements."""
        sizes, found = readable(reshape.inputs[1]), reshape.outputs[0].shape
        if sizes is not None and -1 in sizes and found is not None:
            closed = [found[axis] if size == -1 else size for axis, size in enumerate(sizes)]
            name = f"{reshape.inputs[1].name}/closed"  # type: ignore[union-attr]
            reshape.replace_input_with(1, add_array(self._graph, name, np.array(closed, np.int64)))

    def _cut(self, value: ir.Value, readers: set[ir.Node], rows: ir.Value) -> None:
        """Have ``readers`` read the first ``rows`` rows of ``value`` [batch, tokens, width]."""
        uses = [use for use in value.uses() if use.node in readers]
        cut = ir.node("Slice", [value, self._none, rows, self._one])
        self._insert(cut, value, "run", before=min((use.node for use in uses), key=list(self._graph).index))
        for use in uses:
            use.node.replace_input_with(use.idx, cut.outputs[0])

    def _pad(self, value: ir.Value, pads: ir.Value, before: ir.Node) -> ir.Value:
        """``value`` with zeros for the rows that were not computed."""
        pad = ir.node("Pad", [value, pads, None, self._one])
        pad.outputs[0].shape = value.shape
        self._insert(pad, value, "padded", before)
        return pad.outputs[0]

    def _insert(self, node: ir.Node, like: ir.Value, name: str, before: ir.Node) -> None:
        node.outputs[0].name, node.outputs[0].type = f"{like.name}/{name}", like.type
        node.name = f"{like.name}/{node.op_type}"
        self._graph.insert_before(before, node)

    def _split(self, values: ir.Value, count: int) -> list[ir.Value]:
        if count == 1:
            return [values]
        sizes = add_array(self._graph, f"{SKIP}/sizes", np.ones(count, np.int64))
        parts = ir.Node("", "Split", [values, sizes], {}, num_outputs=count)
        parts.name = f"/{values.name}/Split"
        for i, part in enumerate(parts.outputs):
            part.name = f"{values.name}/{i}"
        self._early.append(parts)
        return list(parts.outputs)

    def _concat(self, missing: ir.Value, place: int) -> ir.Value:
        pads = ir.node("Concat", [self._none, missing], {"axis": 0})
        self._name(pads, f"pads/{place}")
        return pads.outputs[0]

    def _name(self, node: ir.Node, name: str) -> None:
        node.name, node.outputs[0].name = f"/{SKIP}/{name}", f"{SKIP}/{name}"
        self._early.append(node)
