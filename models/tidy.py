"""Make a traced graph fit to read: constants folded, tied weights once, scopes, order and final names."""

import ast

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from onnxforge.models.skeleton import Skeleton

SCOPE = "onnxforge.scope"
"""Node metadata, while the exporter works: dotted path of the module that the node came from."""

_TORCH_SCOPES = "pkg.torch.onnx.name_scopes"
_ROOT = "wrapped"


def tidy(model: ir.Model, skeleton: Skeleton) -> None:
    """Fold and deduplicate the traced graph in place, and replace torch's metadata by a short scope."""
    _share_tied(model.graph, skeleton.aliases)
    for node in model.graph:
        scope = _scope(node)
        node.metadata_props.clear()
        node.metadata_props[SCOPE] = scope
        node.doc_string = None
    # Parameters have no values yet, so nothing large can be folded; the limits only bound the constants.
    optimizer.optimize_ir(model, onnx_shape_inference=True, input_size_limit=1024, output_size_limit=4096)
    common.CommonSubexpressionEliminationPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=1024)(model)
    _keep_leading_dimensions(model.graph)
    _count_axes_from_the_front(model.graph)
    common.RemoveUnusedNodesPass()(model)


def finish(model: ir.Model) -> None:
    """Order the nodes by the structure of the graph and give every node and value its final name.

    The order is the depth-first order from the outputs: it does not depend on hash seeds, as the order in
    which the modelling code visits a Python set does, so equal models give equal bytes.
    """
    graph = model.graph
    nodes = _depth_first(graph)
    for node in list(graph):
        graph.remove(node)
    graph.extend(nodes)
    _name_nodes(graph)
    _name_constants(graph)
    for value in list(graph.initializers.values()):
        if not any(value.uses()):
            del graph.initializers[value.name or ""]
        value.metadata_props.clear()
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = None
    for value in graph.inputs:
        value.metadata_props.clear()


def _share_tied(graph: ir.Graph, aliases: dict[str, str]) -> None:
    """One initializer per tied parameter, under the name that comes first in the model."""
    for alias, name in aliases.items():
        if alias not in graph.initializers:
            continue
        value = graph.initializers.pop(alias)
        if name in graph.initializers:
            value.replace_all_uses_with(graph.initializers[name])
        else:
            value.name = name
            graph.initializers[name] = value


def _keep_leading_dimensions(graph: ir.Graph) -> None:
    """``Reshape(x, Concat(batch, sequence, -1, 16))`` becomes ``Reshape(x, [0, 0, -1, 16])``.

    The dimensions that a view keeps are the ones the value has, so nothing needs to be read at run time.
    """
    made: dict[tuple[int, ...], ir.Value] = {}
    for node in list(graph):
        concat = (
            node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
        )
        if concat is None or concat.op_type != "Concat" or node.inputs[0] is None:
            continue
        target = _kept_shape(node.inputs[0].shape, node.outputs[0].shape, concat)
        if target is None:
            continue
        if target not in made:
            name = f"val_shape_{len(made)}"
            made[target] = ir.Value(
                name=name, const_value=ir.tensor(list(target), dtype=ir.DataType.INT64, name=name)
            )
            made[target].shape, made[target].dtype = ir.Shape([len(target)]), ir.DataType.INT64
            graph.initializers[name] = made[target]
        node.replace_input_with(1, made[target])
        node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _count_axes_from_the_front(graph: ir.Graph) -> None:
    """Concat along -2 of a rank-4 value is Concat along 2: passes need to know one spelling only."""
    for node in graph:
        shape = node.outputs[0].shape
        if node.op_type == "Concat" and shape is not None:
            node.attributes["axis"] = ir.AttrInt64("axis", node.attributes["axis"].as_int() % len(shape))


def _kept_shape(before: ir.Shape | None, after: ir.Shape | None, concat: ir.Node) -> tuple[int, ...] | None:
    if before is None or after is None or len(concat.inputs) != len(after):
        return None
    target = []
    for position, (part, dim) in enumerate(zip(concat.inputs, after, strict=True)):
        value = ir.convenience.get_const_tensor(part) if part is not None else None
        if value is not None:
            target.append(int(value.numpy().reshape(-1)[0]))
        elif position < len(before) and not isinstance(dim, int) and dim.value and before[position] == dim:
            target.append(0)
        else:
            return None
    return tuple(target)


def _scope(node: ir.Node) -> str:
    """Dotted module path of a node: the last scope that is a module, without the wrapper's attribute."""
    text = node.metadata_props.get(_TORCH_SCOPES, "[]")
    scopes = [s for s in ast.literal_eval(text) if s == _ROOT or s.startswith(f"{_ROOT}.")]
    return scopes[-1].removeprefix(_ROOT).removeprefix(".") if scopes else ""


def _depth_first(graph: ir.Graph) -> list[ir.Node]:
    ordered: list[ir.Node] = []
    done: set[ir.Node] = set()
    stack = [(value.producer(), False) for value in reversed(graph.outputs)]
    while stack:
        node, expanded = stack.pop()
        if node is None or node in done:
            continue
        if expanded:
            done.add(node)
            ordered.append(node)
            continue
        stack.append((node, True))
        stack.extend((v.producer(), False) for v in reversed(node.inputs) if v is not None)
    return ordered


def _name_nodes(graph: ir.Graph) -> None:
    kept = {value.name for value in (*graph.inputs, *graph.outputs)} | set(graph.initializers)
    counts: dict[str, int] = {}
    for node in graph:
        base = _path(node.metadata_props.pop(SCOPE, "")) + node.op_type
        number = counts.get(base, 0)
        counts[base] = number + 1
        node.name = f"{base}_{number}" if number else base
        node.metadata_props.clear()
        for position, value in enumerate(node.outputs):
            value.metadata_props.clear()
            if not value.is_graph_output() and value.name not in kept - {value.name}:
                value.name = f"{node.name}_output_{position}"


def _path(scope: str) -> str:
    """``model.layers.0.mlp.up_proj`` is ``/model/layers.0/mlp/up_proj/``: an index stays with its list."""
    parts: list[str] = []
    for part in scope.split(".") if scope else ():
        if part.isdigit() and parts:
            parts[-1] = f"{parts[-1]}.{part}"
        else:
            parts.append(part)
    return "/" + "".join(f"{part}/" for part in parts)


def _name_constants(graph: ir.Graph) -> None:
    """Small constants made by the exporter (axes, epsilons) are called by number, in order of first use."""
    number = 0
    for node in graph:
        for value in node.inputs:
            if value is None or not value.is_initializer() or not (value.name or "").startswith("val_"):
                continue
            tensor = value.const_value
            graph.initializers.pop(value.name or "")
            value.name = f"/constant_{number}"
            if tensor is not None:
                tensor.name = value.name
            graph.initializers[value.name] = value
            number += 1
