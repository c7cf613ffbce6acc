"""A bias beside its quantized product, not inside it: what CUDA's mixed-precision multiplication asks for."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.matching import CONTRIB, input_at, insert_after, is_op, redirect

WHAT = "MatMulNBits without bias"
_BIAS = 5


@dataclass(frozen=True)
class SeparateBias(GraphPass):
    """Take the bias out of every MatMulNBits.

    ::

        MatMulNBits(x, Wq, scales, zeros?, -, bias)   ->   Add(MatMulNBits(x, Wq, scales, zeros?), bias)

    The CPU adds the bias while it stores the product. The CUDA provider's mixed-precision multiplication
    (session option ``ep.cuda.fpa_intb_gemm``) has no kernel with a bias and would leave such a node on its
    slower path; an Add is one elementwise kernel, which ``fuse-skip-norm`` often takes up again.
    """

    summary: ClassVar[str] = "bias of MatMulNBits as an Add (for GPUs)"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Split in place; products without a bias stay as they are."""
        changed = False
        for node in tuple(model.graph.all_nodes()):
            bias = input_at(node, _BIAS) if is_op(node, "MatMulNBits", domain=CONTRIB) else None
            if bias is not None:
                _split(node, bias)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def _split(node: ir.Node, bias: ir.Value) -> None:
    product = node.outputs[0]
    total = ir.Value(name=f"{product.name}_biased", shape=product.shape, type=product.type)
    add = ir.Node("", "Add", [product, bias], outputs=(total,), name=f"{node.name}/Add_bias")
    node.replace_input_with(_BIAS, None)
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    insert_after(node, add)
    redirect(product, total)
    add.replace_input_with(0, product)
    product.name = product.name or f"{node.name}_product"
    notes.match(WHAT, node.name)
