"""One spelling for what exporters write in many: the pass that lets all other passes stay simple."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import extents
from onnxforge.passes.dtypes import infer_dtypes
from onnxforge.passes.folding import fold
from onnxforge.passes.linear import split_gemms, unflatten
from onnxforge.passes.matching import redirect
from onnxforge.passes.opset import upgrade_opset
from onnxforge.passes.shapes import Facts, Shape, infer_shapes
from onnxforge.passes.simplify import constant_reshape, neutral_input
from onnxforge.passes.sizes import infer_sizes
from onnxforge.passes.split_sequence import split_sequences
from onnxforge.passes.tied_weights import tie_transposed_heads

OPSET = 23


@dataclass(frozen=True)
class Canonicalize(GraphPass):
    """Make graphs of all exporters alike, and smaller, without changing what they compute.

    * functions inlined, ``Constant`` nodes become initializers, equal subexpressions are computed once;
    * Identity, Dropout, no-op Cast/Reshape/Expand/Slice/Mul go; small constant subgraphs are evaluated;
    * shape arithmetic (Shape, Gather, Concat ...) is followed by name, and a Reshape whose target is known
      that way gets a constant one such as ``[0, 0, -1, 64]``;
    * Gemm becomes MatMul + Add; a MatMul between flattening Reshapes runs on the unflattened tensor;
    * a transposed weight becomes a lazily transposed initializer of the same name, unless other nodes read
      the weight too (a tied embedding): there ``MatMul(x, Transpose(embedding))`` stays, see below;
    * the graph is raised to opset 23 where every operator in it allows that;
    * shapes and dtypes are recorded on all values that the analysis can decide.

    No weight is read: lazy ones are only ever wrapped. (The one exception are stored weights of an existing
    file, where a head that is a transposed copy of the embedding is found by comparison.)

    The tied head, measured on 49152 x 576 float32 in ONNX Runtime 1.31.1 (CPU): ONNX Runtime folds the
    Transpose while loading, in 0.15 s, and maps the stored embedding, so it holds 132 MB for 108 MB on disk.
    FusedMatMul(transB) holds 238 MB (it packs a copy beside the embedding), a stored transposed copy takes
    216 MB on disk, Gemm needs 251 MB and runs 2 to 3 times slower. Decode speed of the first three is equal.
    """

    summary: ClassVar[str] = "one spelling for constants, shapes, Gemm and transposed weights"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite in place; newly recorded shapes and dtypes count as a change."""
        changed = False
        if model.functions:
            changed |= bool(common.InlinePass()(model).modified)
        changed |= bool(common.RemoveInitializersFromInputsPass()(model).modified)
        changed |= bool(common.NameFixPass()(model).modified)
        changed |= bool(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model).modified
        )
        changed |= split_gemms(model.graph)
        changed |= _share_small_constants(model.graph)
        changed |= bool(common.CommonSubexpressionEliminationPass()(model).modified)
        changed |= bool(common.RemoveUnusedNodesPass()(model).modified)
        changed |= split_sequences(model.graph)
        changed |= tie_transposed_heads(model.graph)
        changed |= _walk(model)
        changed |= upgrade_opset(model, OPSET)
        changed |= _share_small_constants(model.graph)
        changed |= bool(common.CommonSubexpressionEliminationPass()(model).modified)
        changed |= bool(common.RemoveUnusedNodesPass()(model).modified)
        return ir.passes.PassResult(model, modified=changed)


def _walk(model: ir.Model) -> bool:
    """One walk in graph order: infer, then drop or fold each node."""
    facts, changed = Facts(), False
    sizes: dict[tuple[Shape, int, ir.DataType], ir.Value] = {}
    for node in tuple(model.graph):
        changed |= infer_dtypes(node, model.opset_imports)
        infer_shapes(node, facts)
        infer_sizes(node, facts)
        changed |= _replace(node, facts, model.opset_imports) or _share_sizes(node, facts, sizes)
    changed |= unflatten(model.graph, facts)
    return _record_shapes(model.graph, facts) or changed


def _replace(node: ir.Node, facts: Facts, opsets: Mapping[str, int]) -> bool:
    if not node.outputs:
        return False
    output = node.outputs[0]
    replacement = neutral_input(node, facts) or fold(node, facts, opsets)
    if replacement is None:
        return constant_reshape(node, facts)
    if not redirect(output, replacement):
        return False
    graph = node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    return True


def _share_sizes(node: ir.Node, facts: Facts, seen: dict[tuple[Shape, int, ir.DataType], ir.Value]) -> bool:
    """Read ``batch_size`` from where it was first computed, whichever tensor it was taken from."""
    output = node.outputs[0] if node.outputs else None
    elements, shape = facts.elements.get(output) if output else None, facts.shape(output)
    if output is None or elements is None or shape is None or output.dtype is None or node.graph is None:
        return False
    first = seen.setdefault((elements, len(shape), output.dtype), output)
    if first is output or not redirect(output, first):
        return False
    node.graph.remove(node, safe=True)
    return True


def _record_shapes(graph: ir.Graph, facts: Facts) -> bool:
    changed = False
    for output in (output for node in graph for output in node.outputs):
        shape = facts.shapes.get(output)
        if shape is not None and not output.is_graph_output():
            recorded = _as_ir(shape, output.shape)
            if recorded != output.shape:
                output.shape, changed = recorded, True
    return changed


def _as_ir(shape: Shape, recorded: ir.Shape | None) -> ir.Shape:
    """Names and sums of names are written out; what is unknown keeps what the exporter had recorded."""
    dims: list[int | str | None] = []
    for axis, dim in enumerate(shape):
        if dim.value is not None:
            dims.append(dim.value)
        elif all(not name.startswith("?") for name in dim.symbols):
            dims.append(str(dim))
        else:
            old = recorded[axis] if recorded is not None and len(recorded) == len(shape) else None
            dims.append(old if isinstance(old, int) else old.value if old is not None else None)
    return ir.Shape(dims)


def _share_small_constants(graph: ir.Graph) -> bool:
    """Let equal small constants be one initializer, so that equal subexpressions become visible."""
    seen: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    changed = False
    for value in tuple(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        if isinstance(tensor, ir.LazyTensor) or tensor.size > 16 or tensor.dtype == ir.DataType.STRING:
            continue
        key = (tensor.dtype.name, extents(tensor), tensor.tobytes())
        first = seen.setdefault(key, value)
        if first is not value and value.uses():
            value.replace_all_uses_with(first)
            changed = True
    return changed
