"""The key-value cache in int8: a quarter of float32's bytes per token, half of float16's."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.cache_range import cache_range_of
from onnxforge.passes.constants import add_array
from onnxforge.passes.matching import CONTRIB, is_op

WHAT = "int8 cache"
_PAST = re.compile(r"past_key_values\.\d+\.(?:key|value)")
_INPUTS = 14
_SIDES = ((3, 1, 12, "k"), (4, 2, 13, "v"))
"""Per side of a GroupQueryAttention: input of its past, output of its present, input of its scale, letter."""
_MODES = {"channel": "PER_CHANNEL", "tensor": "PER_TENSOR"}
_LARGEST = 127


@dataclass(frozen=True)
class QuantizeCache(GraphPass):
    """Let every GroupQueryAttention keep its keys and values as int8, on static symmetric scales.

    ::

        float past ─┐                                  int8 past ──────────┐
        q, k, v ─ GroupQueryAttention ─ float present  q, k, v ─ GroupQueryAttention ─ int8 present
                                                       float k_scale, v_scale ┘

    The operator does the rounding: what it appends is round(x / scale), what attention reads is int8 times
    scale, of the new tokens too, so that a prompt in one run and token by token give the same numbers. Keys
    are stored after their rotation. Scales come from ``calibrate-cache``; per channel, one outlying channel
    of the keys does not cost the others their resolution.

    Scales are float32 whatever the graph computes in, so this runs after ``convert-float16``.

    Source: the KV-cache section of ``com.microsoft.GroupQueryAttention``'s specification (ONNX Runtime 1.31);
    keys per channel: Liu et al. 2024, KIVI (2402.02750).
    """

    summary: ClassVar[str] = "past and present in int8, on scales that calibrate-cache measured"

    granularity: str = "channel"
    """``channel``: one scale per head and channel. ``tensor``: one for a layer's keys, one for its values.
    The CPU provider wants the same for both."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph whose cache is not all in GroupQueryAttention's hands, or was not measured.

        Raises:
            PassRefused: with the first input or node that is in the way.
        """
        if self.granularity not in _MODES:
            raise PassRefused(f"{self.text()}: granularity is {self.granularity!r}; channel or tensor")
        pasts = [value for value in model.graph.inputs if _PAST.fullmatch(value.name or "")]
        if not pasts:
            raise PassRefused(
                f"{self.text()}: the graph has no key-value cache (no input past_key_values.N.key). "
                "Compile an encoder without an int8 cache, and a decoder with its past."
            )
        for value in pasts:
            if (objection := _objection(value)) is not None:
                raise PassRefused(f"{self.text()}: {objection}")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize every cache that is not int8 yet."""
        changed = False
        for node in _attentions(model.graph):
            if node.inputs[_SIDES[0][0]].dtype is ir.DataType.INT8:  # type: ignore[union-attr]
                continue
            node.resize_inputs(_INPUTS)
            for past, present, scale, letter in _SIDES:
                self._quantize(model.graph, node, past, present, scale, letter)
            node.attributes["kv_cache_bit_width"] = ir.AttrInt64("kv_cache_bit_width", 8)
            notes.match(WHAT, node.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _quantize(
        self, graph: ir.Graph, node: ir.Node, past: int, present: int, scale: int, letter: str
    ) -> None:
        kept, found = node.outputs[present], cache_range_of(node.outputs[present])
        assert found is not None
        scales = (
            _scales(found) if self.granularity == "channel" else _scales(found.max(keepdims=True)).ravel()
        )
        node.replace_input_with(scale, add_array(graph, f"{kept.name}.scale", scales))
        mode = _MODES[self.granularity]
        node.attributes[f"{letter}_quant_type"] = ir.AttrString(f"{letter}_quant_type", mode)
        for value in (node.inputs[past], kept):
            assert value is not None
            value.type = ir.TensorType(ir.DataType.INT8)


def _scales(largest: np.ndarray) -> np.ndarray:
    """float32 [1, KV, 1, D] for magnitudes [KV, D]. A channel that was always zero keeps zero exact."""
    steps = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    return steps[None, :, None, :]


def _attentions(graph: ir.Graph) -> Iterator[ir.Node]:
    return (
        node
        for node in graph
        if is_op(node, "GroupQueryAttention", domain=CONTRIB) and node.inputs[3] is not None
    )


def _objection(past: ir.Value) -> str | None:
    """Why the cache that enters as ``past`` cannot be int8."""
    readers = [(node, index) for node, index in past.uses() if not is_op(node, "Shape")]
    if len(readers) != 1 or not is_op(readers[0][0], "GroupQueryAttention", domain=CONTRIB):
        found = ", ".join(sorted({node.op_type for node, _ in readers})) or "nothing"
        return (
            f"{past.name} is read by {found}; only GroupQueryAttention takes an int8 cache. "
            "See the ledger of fuse-attention for why this layer's attention was not fused."
        )
    node, index = readers[0]
    present = next((node.outputs[out] for source, out, _, _ in _SIDES if source == index), None)
    if present is None or tuple(present.uses()) or not present.is_graph_output():
        return f"{past.name}: {node.name} does not return it as the graph's present, or others read it too"
    if past.dtype is not ir.DataType.INT8 and cache_range_of(present) is None:
        return f"{present.name} was never measured; put `calibrate-cache` before this pass"
    return None
