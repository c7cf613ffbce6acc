"""Attention in the one operator that the target's kernels are fast at."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes import notes
from onnxforge.passes.attention_emit import Hidden, Writer
from onnxforge.passes.attention_match import (
    Core,
    NotAttention,
    OperatorScores,
    RawScores,
    bias,
    candidates,
    describe,
)
from onnxforge.passes.attention_parts import Parts, Rotary, take_apart
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import constant
from onnxforge.passes.mask_probe import Causal, MaskMeaning, NoMask, Padding, Unknown, mask_meaning
from onnxforge.passes.subgraph_probe import Bench, Probe, Sizes, Unprobeable

GROUP_QUERY = "GroupQueryAttention"
MULTI_HEAD = "MultiHeadAttention"
STANDARD = "Attention"
_LEAST_OPSET = 13
"""From here on ReduceSum and Squeeze take their axes as inputs, which is how they are written."""
SHARED_CACHE = "onnxforge.shared_cache"
"""Model metadata, "true" when every past and present pair may be bound to one buffer."""


@dataclass(frozen=True)
class FuseAttention(GraphPass):
    """Replace each attention by one fused operator of ONNX Runtime.

    Decoders (keys and values through ``Concat(past, new)``)::

        before  RotaryEmbedding(q), Concat(past, RotaryEmbedding(k)), Attention(q, k, v, mask)
        after   GroupQueryAttention(q, k, v, past, present, seqlens_k, total, cos, sin)

    Encoders::

        before  Attention(q, k, v, mask) or MatMul, Add(mask), Softmax, MatMul
        after   MultiHeadAttention(q, k, v, key_padding_mask)

    With ``decoder=Attention`` or ``encoder=Attention`` the written-out forms become the standard operator of
    opset 23, mask and cache as they are.

    A mask of an encoder that is more than padding (a window, relative positions) becomes ``attention_bias``.

    GroupQueryAttention is causal by construction, so a mask is replaced only when it is *proven* causal (or
    causal within a window) by evaluating it. It counts positions from the number of tokens in each row: with
    the rotation folded in, the graph input ``position_ids`` disappears, and batches have to be padded on the
    **right**, where the slot of a token in its row is its position.

    ONNX Runtime's CPU kernel (1.31) wants head sizes that are a multiple of 8 (of 16 when it rotates, and
    then a rotated part that is a multiple of 16). Several new tokens over a non-empty cache in a batch of
    more than one row are an error at run time.

    What cannot be fused stays as it is, with the reason in the notes.
    """

    summary: ClassVar[str] = "attention as GroupQueryAttention (decoders) or MultiHeadAttention (encoders)"

    decoder: str = GROUP_QUERY
    encoder: str = MULTI_HEAD

    def requires(self, model: ir.Model) -> None:
        """Refuse operators that this pass cannot write."""
        options = (("decoder", self.decoder, GROUP_QUERY), ("encoder", self.encoder, MULTI_HEAD))
        for option, value, contrib in options:
            known = (contrib, STANDARD, "none")
            if value not in known:
                raise PassRefused(f"fuse-attention: {option}={value!r} is not one of {', '.join(known)}.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Match everything first, while the graph stands still; then write."""
        graph = model.graph
        if not any(candidates(graph)):
            return ir.passes.PassResult(model, modified=False)
        found = list(_Survey(graph, self).plans())
        if not found:
            return ir.passes.PassResult(model, modified=False)
        writer = Writer(graph, graph[0])
        for plan in found:
            plan.write(writer)
        common.RemoveUnusedNodesPass()(model)
        graph.sort()
        _drop_unused_positions(graph)
        if _every_cache_is_shared(graph):
            model.metadata_props[SHARED_CACHE] = "true"
        return ir.passes.PassResult(model, modified=True)


@dataclass(frozen=True)
class _Bias:
    """A mask that no attribute or padding mask expresses, handed to the operator as numbers."""

    added: tuple[ir.Value, ...]
    boolean: bool
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """One attention and the operator that replaces it."""

    parts: Parts
    op_type: str
    hidden: Hidden
    causal: bool
    window: int | None = None
    rotary: Rotary | None = None
    bias: _Bias | None = None

    def write(self, writer: Writer) -> None:
        bias = None
        if self.bias is not None:
            bias = writer.bias(self.parts, self.bias.added, boolean=self.bias.boolean, shape=self.bias.shape)
        if self.op_type == STANDARD:
            writer.standard(self.parts, bias)
        elif self.op_type == GROUP_QUERY:
            writer.group_query(self.parts, rotary=self.rotary, window=self.window, hidden=self.hidden)
        else:
            writer.multi_head(self.parts, hidden=self.hidden, causal=self.causal, bias=bias)
        notes.match(self.op_type, self.parts.core.where)


class _Survey:
    """Reads one graph, which must not change meanwhile; remembers what masks and positions mean."""

    def __init__(self, graph: ir.Graph, options: FuseAttention) -> None:
        self._graph = graph
        self._options = options
        self._bench = Bench(graph)
        self._cached = any((value.name or "").startswith("past") for value in graph.inputs)
        sizes = (Sizes(3, 13, 16), Sizes(2, 5, 11)) if self._cached else (Sizes(3, 13, 0), Sizes(2, 5, 0))
        self._probes = tuple(self._bench.probe(size) for size in sizes)
        self._masks: dict[object, MaskMeaning] = {}
        self._positions: dict[ir.Value, bool] = {}

    def plans(self) -> Iterator[_Plan]:
        wanted = self._options.decoder if self._cached else self._options.encoder
        if wanted == "none":
            return
        least = 23 if wanted == STANDARD else _LEAST_OPSET
        opset = self._graph.opset_imports.get("", least)
        if opset < least:
            notes.near_miss(wanted, self._graph.name, f"opset {opset}; at least {least} is needed")
            return
        for node in candidates(self._graph):
            try:
                core = describe(node, self._probes[0])
                if core is None:
                    continue
                if wanted == STANDARD and isinstance(core.scores, OperatorScores):
                    continue
                yield self._plan(take_apart(core, self._probes, cached=self._cached), wanted)
            except (NotAttention, Unprobeable) as reason:
                notes.near_miss(wanted, node.name, str(reason))

    def _plan(self, parts: Parts, wanted: str) -> _Plan:
        if wanted == STANDARD:
            bias = self._bias(parts.core, "the mask has no counterpart in the operator")
            return _Plan(parts, STANDARD, Hidden.NOTHING, causal=False, bias=bias)
        meaning = self._mask(parts.core)
        return self._group_query(parts, meaning) if self._cached else self._multi_head(parts, meaning)

    def _mask(self, core: Core) -> MaskMeaning:
        scores = core.scores
        if isinstance(scores, OperatorScores):
            roots: tuple[ir.Value, ...] = () if scores.mask is None else (scores.mask,)
            key: object = roots
        else:
            roots = tuple(value for value in scores.operands if constant(value) is None)
            key = (scores.ops, roots)
        if key not in self._masks:
            self._masks[key] = mask_meaning(
                self._bench, lambda probe: bias(scores, probe), roots, cached=self._cached
            )
        return self._masks[key]

    def _group_query(self, parts: Parts, meaning: MaskMeaning) -> _Plan:
        if isinstance(meaning, Unknown):
            raise NotAttention(meaning.reason)
        if not isinstance(meaning, Causal):
            raise NotAttention(f"the mask is {type(meaning).__name__}, and {GROUP_QUERY} is causal")
        size = parts.query.rotated.head_size
        if size % 8 or parts.value.head_size != size:
            raise NotAttention(
                f"heads of {size} numbers (values of {parts.value.head_size}): the kernel wants one size, "
                "a multiple of 8"
            )
        rotary = self._folded(parts)
        hidden = Hidden.PADDING if meaning.padding else Hidden.NOTHING
        return _Plan(parts, GROUP_QUERY, hidden, causal=True, window=meaning.window, rotary=rotary)

    def _folded(self, parts: Parts) -> Rotary | None:
        """The rotary embedding that the kernel can take over, or None with a note."""
        rotary, size = parts.query.rotary, parts.query.rotated.head_size
        if rotary is None and parts.key.rotary is None:
            return None
        if rotary is None or rotary != parts.key.rotary:
            reason = "query and key are not rotated by the same tables at the same positions"
        elif size % 16 or rotary.dim % 16:
            reason = f"the kernel rotates multiples of 16 numbers, not {rotary.dim} of {size}"
        elif rotary.scale != 1.0:
            reason = f"the rotary embedding scales by {rotary.scale}"
        elif not self._counts_slots(rotary.positions):
            reason = f"{rotary.positions.name!r} is not the position of each token in its row"
        else:
            return rotary
        notes.near_miss("do_rotary", parts.core.where, reason)
        return None

    def _counts_slots(self, positions: ir.Value) -> bool:
        """Whether ``positions`` are what the kernel would count, for right-padded rows."""
        if positions not in self._positions:
            ragged = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int64)
            shapes = ((Sizes(2, 7, 0), ragged), (Sizes(2, 3, 4), None), (Sizes(1, 1, 9), None))
            self._positions[positions] = all(
                _slots(self._bench.probe(sizes, mask), positions) for sizes, mask in shapes
            )
        return self._positions[positions]

    def _multi_head(self, parts: Parts, meaning: MaskMeaning) -> _Plan:
        query, key = parts.query.rotated, parts.key.rotated
        if parts.softcap:
            raise NotAttention(f"{MULTI_HEAD} has no soft cap")
        if key.heads != query.heads or parts.value.heads != query.heads:
            raise NotAttention(
                f"{query.heads} query heads over {key.heads} key heads: {MULTI_HEAD} wants as many"
            )
        if isinstance(meaning, Unknown) or (isinstance(meaning, Causal) and meaning.window is not None):
            reason = (
                meaning.reason if isinstance(meaning, Unknown) else f"there is no attribute for {meaning}"
            )
            bias = self._bias(parts.core, reason)
            return _Plan(parts, MULTI_HEAD, Hidden.NOTHING, causal=False, bias=bias)
        pads = isinstance(meaning, Padding) or (isinstance(meaning, Causal) and meaning.padding)
        hidden = Hidden.PADDING if pads else Hidden.NOTHING
        return _Plan(parts, MULTI_HEAD, hidden, causal=not isinstance(meaning, Padding | NoMask))

    def _bias(self, core: Core, reason: str) -> _Bias | None:
        scores, probe = core.scores, self._probes[0]
        if isinstance(scores, RawScores):
            added = scores.added
        else:
            added = () if scores.mask is None else (scores.mask,)
        if added is None:
            raise NotAttention(f"{reason}; and it is not simply added to the scores")
        if not added:
            return None
        shape = np.broadcast_shapes(*(probe.shape(item) for item in added))
        dtype = added[0].dtype or ir.DataType.from_numpy(probe.value(added[0]).dtype)
        return _Bias(added, dtype == ir.DataType.BOOL, shape)


def _slots(probe: Probe, positions: ir.Value) -> bool:
    sizes = probe.sizes
    try:
        given = probe.value(positions).reshape(-1, probe.value(positions).shape[-1])
    except Unprobeable:
        return False
    slots = np.arange(sizes.past, sizes.total)
    # A single number is the position of the first token, by the operator's definition.
    rows = given + np.arange(sizes.sequence) if given.size == 1 else given
    if rows.shape[-1] != sizes.sequence:
        return False
    real = probe.mask[:, sizes.past :].astype(bool)
    return bool((np.broadcast_to(rows, real.shape) == slots)[real].all())


def _drop_unused_positions(graph: ir.Graph) -> None:
    for value in tuple(graph.inputs):
        if value.name == "position_ids" and not value.uses() and not value.is_graph_output():
            graph.inputs.remove(value)


def _every_cache_is_shared(graph: ir.Graph) -> bool:
    """Whether each past input is read by one GroupQueryAttention only, and the graph returns its present."""
    past = [value for value in graph.inputs if (value.name or "").startswith("past")]
    for value in past:
        uses = tuple(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != GROUP_QUERY or uses[0].idx not in (3, 4):
            return False
        if not uses[0].node.outputs[uses[0].idx - 2].is_graph_output():
            return False
    return bool(past)
