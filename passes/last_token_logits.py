"""Logits of the last token only, for callers that never look at the others."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import add_array, constant
from onnxforge.passes.matching import CONTRIB, is_op, make, producer

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Tanh", "Cast", "Identity")


@dataclass(frozen=True)
class LastTokenLogits(GraphPass):
    """Slice the hidden states to the last position before the LM head.

    ::

        hidden [B, S, H] -> MatMul -> logits [B, S, V]
        hidden [B, S, H] -> Slice [B, 1, H] -> MatMul -> logits [B, 1, V]

    The contract of the graph changes, so no default target uses this pass: perplexity and lm-eval need all
    positions. With right padding the last position of a short row is padding; callers pass equal lengths.
    Elementwise steps between the head and the output (logit scaling, soft-capping) are kept.
    """

    summary: ClassVar[str] = "compute the logits of the last position only"

    output: str = "logits"
    """Name of the graph output that holds the logits."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph without an LM head to slice before.

        Raises:
            PassRefused: no such output, or no matrix product with a constant weight computes it.
        """
        found = [value.name for value in model.graph.outputs]
        if self.output not in found:
            raise PassRefused(
                f"{self.text()}: the graph has no output {self.output!r}; it has {', '.join(map(str, found))}"
            )
        if self._head(model.graph) is None:
            raise PassRefused(
                f"{self.text()}: output {self.output!r} is not a matrix product with a constant weight and "
                "elementwise steps behind it; leave this pass out"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the Slice; False where it is there already."""
        head = self._head(model.graph)
        assert head is not None
        hidden = head.inputs[0]
        assert hidden is not None
        if _is_last_slice(hidden):
            return ir.passes.PassResult(model, modified=False)
        sliced = self._slice(model.graph, head, hidden)
        head.replace_input_with(0, sliced)
        for value in self._chain(model.graph, head):
            if value.shape is not None and len(value.shape) == 3:
                value.shape = ir.Shape([value.shape[0], 1, value.shape[2]])
        notes.match("last token", head.name)
        return ir.passes.PassResult(model, modified=True)

    def _head(self, graph: ir.Graph) -> ir.Node | None:
        value: ir.Value | None = next(item for item in graph.outputs if item.name == self.output)
        while value is not None:
            node = value.producer()
            if node is None:
                return None
            if is_op(node, "MatMulNBits", domain=CONTRIB):
                return node
            if is_op(node, "MatMul"):
                return node if _is_constant(node.inputs[1]) else None
            value = _data_input(node) if is_op(node, *_ELEMENTWISE) else None
        return None

    def _chain(self, graph: ir.Graph, head: ir.Node) -> list[ir.Value]:
        """The values from the head to the output."""
        value = next(item for item in graph.outputs if item.name == self.output)
        chain = [value]
        while (node := value.producer()) is not None and node is not head:
            above = _data_input(node)
            if above is None:
                break
            value = above
            chain.append(value)
        return chain

    def _slice(self, graph: ir.Graph, head: ir.Node, hidden: ir.Value) -> ir.Value:
        end = np.array([np.iinfo(np.int64).max], dtype=np.int64)
        bounds = [
            add_array(graph, f"{self.output}.last.{name}", array)
            for name, array in (
                ("start", np.array([-1], dtype=np.int64)),
                ("end", end),
                ("axis", np.array([1], dtype=np.int64)),
            )
        ]
        node = make("Slice", (hidden, *bounds), like=hidden, name=f"{head.name}/last_token")
        node.outputs[0].name = f"{hidden.name}_last"
        if hidden.shape is not None:
            node.outputs[0].shape = ir.Shape([hidden.shape[0], 1, *hidden.shape[2:]])
        graph.insert_before(head, node)
        return node.outputs[0]


def _is_constant(value: ir.Value | None) -> bool:
    turned = producer(value, "Transpose")
    return constant(value if turned is None else turned.inputs[0]) is not None


def _data_input(node: ir.Node) -> ir.Value | None:
    """The one input of an elementwise node that is not a constant."""
    data = [value for value in node.inputs if value is not None and constant(value) is None]
    return data[0] if len(data) == 1 else None


def _is_last_slice(hidden: ir.Value) -> bool:
    node = producer(hidden, "Slice")
    return node is not None and (node.name or "").endswith("/last_token")
