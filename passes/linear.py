"""Linear layers in one spelling: MatMul by a [K, N] weight, then Add of a bias.

::

    Gemm(x, W, b, transB=1)                        ->  Add(MatMul(x, Transpose(W)), b)
    Reshape -> MatMul(W) [-> Add(b)] -> Reshape    ->  MatMul(W) [-> Add(b)]      (x of rank 3 throughout)
"""

import onnx_ir as ir

from onnxforge.passes.constants import constant
from onnxforge.passes.matching import (
    insert_after,
    int_attribute,
    is_op,
    make,
    only_use,
    redirect,
    remove_dead,
)
from onnxforge.passes.shapes import Facts


def split_gemms(graph: ir.Graph) -> bool:
    """Replace each plain Gemm (alpha = beta = 1, A not transposed) by MatMul and Add."""
    changed = False
    for node in tuple(graph):
        if is_op(node, "Gemm") and _is_plain(node):
            _split_gemm(node)
            changed = True
    return changed


def _is_plain(node: ir.Node) -> bool:
    scales = (node.attributes.get("alpha"), node.attributes.get("beta"))
    unscaled = all(item is None or item.as_float() == 1.0 for item in scales)
    return (
        unscaled
        and not int_attribute(node, "transA", 0)
        and all(value is not None for value in node.inputs[:2])
    )


def _split_gemm(node: ir.Node) -> None:
    output, name = node.outputs[0], node.name or node.outputs[0].name or "gemm"
    weight, new = node.inputs[1], []
    assert weight is not None
    if int_attribute(node, "transB", 0):
        turned = ir.Value(name=f"{weight.name}_transposed", type=weight.type)
        perm = [ir.AttrInt64s("perm", [1, 0])]
        new.append(ir.Node("", "Transpose", (weight,), perm, outputs=(turned,), name=f"{name}/Transpose"))
        weight = turned
    product = make("MatMul", (node.inputs[0], weight), like=output, name=f"{name}/MatMul")
    new.append(product)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        product.outputs[0].name = f"{output.name}_product"
        new.append(make("Add", (product.outputs[0], bias), like=output, name=f"{name}/Add"))
    insert_after(node, *new)
    redirect(output, new[-1].outputs[0])
    remove_dead([node])


def unflatten(graph: ir.Graph, facts: Facts) -> bool:
    """Run a MatMul on the tensor that a Reshape had flattened for it, where the result is reshaped back."""
    changed = False
    for node in tuple(graph):
        if is_op(node, "MatMul") and node.graph is not None:
            changed |= _unflatten_one(node, facts)
    return changed


def _unflatten_one(node: ir.Node, facts: Facts) -> bool:
    flat, weight = node.inputs[0], node.inputs[1]
    flattening = flat.producer() if flat is not None else None
    tensor = constant(weight)
    if flattening is None or not is_op(flattening, "Reshape") or tensor is None or len(tensor.shape) != 2:
        return False
    add = only_use(node.outputs[0])
    bias = _row_bias(add, node.outputs[0]) if add is not None else None
    last = add if add is not None and bias is not None else node
    back = only_use(last.outputs[0])
    if back is None or not is_op(back, "Reshape"):
        return False
    source, target = facts.shape(flattening.inputs[0]), facts.shape(back.outputs[0])
    width = facts.shape(weight)
    if source is None or target is None or width is None or target != (*source[:-1], width[1]):
        return False
    if facts.shape(flat) is None or facts.shape(flat) != (*(facts.shape(flat) or ())[:1], source[-1]):
        return False
    node.replace_input_with(0, flattening.inputs[0])
    for value in {node.outputs[0], last.outputs[0]}:
        facts.shapes[value] = target
        value.shape = back.outputs[0].shape
    if not redirect(back.outputs[0], last.outputs[0]):
        return False
    remove_dead([back, flattening])
    return True


def _row_bias(add: ir.Node, product: ir.Value) -> ir.Value | None:
    """The constant vector that ``add`` adds to ``product``."""
    if not is_op(add, "Add"):
        return None
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    tensor = constant(other)
    return other if tensor is not None and len(tensor.shape) == 1 else None
