"""A float32 graph in float16: weights, activations, cache and logits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import free_name
from onnxforge.passes.dtypes import infer_dtypes
from onnxforge.passes.float16_weights import Float16Weights
from onnxforge.passes.float32_islands import float32_islands, reads_any_type
from onnxforge.passes.matching import insert_after, is_op
from onnxforge.passes.option_checks import check_pattern

WHAT = "float16"
_SINGLE, _HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
_ADVICE = "Keep them in float32 with `--set convert-float16.skip=REGEX`, or choose a float32 target."


@dataclass(frozen=True)
class ConvertFloat16(GraphPass):
    """Every float32 tensor becomes float16, except where float16 would lose the meaning.

    ::

        float x, W ─ MatMul ─ y                float16 x, W ─ MatMul ─ y
        float x ─ Pow ─ ReduceMean ─ Mul       float16 x ─ Cast ─ Pow ─ ReduceMean ─ Cast ─ Mul

    What stays float32, with Casts at its borders, and why, is in :mod:`onnxforge.passes.float32_islands`.
    RMSNormalization, LayerNormalization, Softmax and the attention operators need no island: their CUDA
    kernels add up in float32 and take float16 scales. Rotary tables become float16 because
    GroupQueryAttention wants one type for queries and tables.

    Past, present and logits become float16, as onnxruntime-genai's CUDA graphs have them. The LM head's
    product is float16 anyway: a Cast behind it would double the bytes that leave the GPU per token and add
    no bit. An encoder's outputs follow the same rule.

    Weights stay lazy; one that float16 cannot hold is refused while it is written, by name.
    """

    summary: ClassVar[str] = "float16 weights, activations, cache and logits; float32 where it must be"

    skip: str = ""
    """A regular expression; nodes whose name, or one of whose weights' names, it finds stay float32."""

    def requires(self, model: ir.Model) -> None:
        """Refuse graphs that cannot be judged value by value.

        Raises:
            PassRefused: ``skip`` is no regular expression, or the graph has subgraphs.
        """
        check_pattern(self.text(), "skip", self.skip)
        branching = [node for node in model.graph if _has_subgraph(node)]
        if branching:
            raise PassRefused(
                f"{self.text()}: {branching[0].op_type} `{branching[0].name}` holds a subgraph; a flat graph "
                "is needed. Choose a float32 target."
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert in place."""
        graph = model.graph
        nodes = tuple(graph)
        for node in nodes:
            infer_dtypes(node, model.opset_imports)
        islands = float32_islands(graph, self.skip)
        weights, changed = Float16Weights(_ADVICE), False
        for value in tuple(graph.inputs):
            changed |= _convert_input(value, islands, weights)
        for value in tuple(graph.initializers.values()):
            changed |= _convert_weight(value, islands, weights, graph)
        for node in nodes:
            changed |= _leave(node, islands) if node in islands else _convert(node, islands, weights)
        if changed:
            notes.match(WHAT, graph.name)
        return ir.passes.PassResult(model, modified=changed)


def _has_subgraph(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def _convert_input(value: ir.Value, islands: set[ir.Node], weights: Float16Weights) -> bool:
    if value.dtype is not _SINGLE:
        return False
    _retype(value)
    if value.const_value is not None:
        value.const_value = weights.half(value.const_value, value.name or "")
    _feed(value, _SINGLE, _within(value, islands))
    return True


def _convert_weight(value: ir.Value, islands: set[ir.Node], weights: Float16Weights, graph: ir.Graph) -> bool:
    tensor = value.const_value
    if value.dtype is not _SINGLE or tensor is None or value.is_graph_input():
        return False
    inside = _within(value, islands)
    if not inside:
        value.const_value = weights.half(tensor, value.name or "")
        _retype(value)
        return True
    outside = [(node, index) for node, index in value.uses() if (node, index) not in inside]
    if not outside:
        return False
    name = free_name(graph, f"{value.name}.float16")
    copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(_HALF))
    copy.const_value = weights.half(tensor, name)
    graph.register_initializer(copy)
    for node, index in outside:
        node.replace_input_with(index, copy)
    return True


def _convert(node: ir.Node, islands: set[ir.Node], weights: Float16Weights) -> bool:
    """A node that computes in float16 from now on."""
    changed = False
    if is_op(node, "Cast") and node.attributes["to"].as_int() == _SINGLE:
        node.attributes["to"] = ir.AttrInt64("to", int(_HALF))
        changed = True
    filler = node.attributes.get("value")
    if filler is not None and filler.type == ir.AttributeType.TENSOR and filler.as_tensor().dtype is _SINGLE:
        node.attributes["value"] = ir.AttrTensor("value", weights.half(filler.as_tensor(), node.name or ""))
        changed = True
    for output in node.outputs:
        if output.name and output.dtype is _SINGLE:
            _retype(output)
            changed = True
            _feed(output, _SINGLE, _within(output, islands))
    return changed


def _leave(node: ir.Node, islands: set[ir.Node]) -> bool:
    """A node of an island: what others read of it is cast."""
    changed = False
    for output in node.outputs:
        if output.dtype is not _SINGLE:
            continue
        outside = [
            (user, index) for user, index in output.uses() if user not in islands and not reads_any_type(user)
        ]
        if outside or output.is_graph_output():
            _feed(output, _HALF, outside)
            changed = True
    return changed


def _retype(value: ir.Value) -> None:
    """Values share type objects where a pass made one like another, so each gets its own."""
    value.type = ir.TensorType(_HALF)


def _within(value: ir.Value, islands: set[ir.Node]) -> list[tuple[ir.Node, int]]:
    """The uses of ``value`` that want float32."""
    return [(node, index) for node, index in value.uses() if node in islands and not reads_any_type(node)]


def _feed(value: ir.Value, dtype: ir.DataType, uses: Iterable[tuple[ir.Node, int]]) -> None:
    """One Cast of ``value`` for all of ``uses``, and for the graph's output where its type has to change."""
    uses = list(uses)
    returned = dtype is _HALF and value.is_graph_output()
    if not uses and not returned:
        return
    suffix = "float16" if dtype is _HALF else "float32"
    output = ir.Value(name=f"{value.name}.{suffix}", shape=value.shape, type=ir.TensorType(dtype))
    to = [ir.AttrInt64("to", int(dtype))]
    cast = ir.Node("", "Cast", [value], to, outputs=(output,), name=f"{value.name}/Cast_{suffix}")
    parent = value.producer()
    if parent is not None:
        insert_after(parent, cast)
    else:
        first = uses[0][0].graph
        assert first is not None
        first.insert_before(first[0], cast)
    for node, index in uses:
        node.replace_input_with(index, output)
    if returned and parent is not None and isinstance(parent.graph, ir.Graph):
        outputs = parent.graph.outputs
        outputs[outputs.index(value)] = output
        value.name, output.name = f"{value.name}.float32", value.name
