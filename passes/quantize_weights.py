"""Weights in 8 or 4 bits, in blocks: MatMulNBits, with the embedding over the same bytes as the tied head."""

import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.block_grids import GRIDS
from onnxforge.passes.block_offsets import BlockOffsets, is_part
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import constant
from onnxforge.passes.dequantized_gather import dequantized_gather
from onnxforge.passes.matching import (
    CONTRIB,
    insert_after,
    int_attribute,
    is_op,
    make,
    only_use,
    producer,
    redirect,
    remove_dead,
)
from onnxforge.passes.ordered_columns import OrderedColumns
from onnxforge.passes.quantized_table import MatrixKey, MatrixWeight, QuantizedTable, store, store_kept
from onnxforge.passes.stored_blocks import MIDDLE, StoredBlocks, cut, stored_blocks

WHAT = "MatMulNBits"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class _Adjustments:
    """What stored blocks need around their product."""

    offsets: BlockOffsets
    order: OrderedColumns


@dataclass(frozen=True)
class QuantizeWeights(GraphPass):
    """Replace large float weights by blockwise integers.

    ::

        MatMul(x, W) [+ bias]    ->  MatMulNBits(x, Wq, scales[, zeros][, bias])
        MatMul(x, Transpose(E))  ->  MatMulNBits(x, Eq, scales[, zeros])
        Gather(E, ids)           ->  (Gather(Eq, ids) - zero) * Gather(scales, ids)

    ``W`` is a constant [K, N] with K a multiple of ``block_size``. Every packed tensor is lazy: it is
    computed from its float source, one matrix at a time, while the artifact is written. A tied embedding
    is stored once: head and lookup read the same ``Eq``.

    With ``keep_blocks`` a weight that its source stores in blocks is not rounded again, whatever ``bits``,
    ``block_size`` and ``method`` say: its codes, steps and zero points are the source's own. A minimum per
    block is added by :mod:`onnxforge.passes.block_offsets`, an order of columns by
    :mod:`onnxforge.passes.ordered_columns`.

    ``accuracy_level=4`` lets ONNX Runtime multiply in int8. Activations are then rounded per block of one
    row, so that a row's result does not depend on the other rows of the batch; at 8 bits this takes 8 us for
    one row of 576 x 1536 against 424 us at level 0. Source: ONNX Runtime's contrib operator documentation.
    """

    summary: ClassVar[str] = "blockwise 8- or 4-bit weights (MatMulNBits), tied embeddings stored once"

    bits: int = 8
    block_size: int = 32
    accuracy_level: int = 4
    symmetric: bool = True
    """One zero point for all blocks (the middle code); otherwise each block has its own."""
    method: str = "rtn"
    """How the grid of a block is found: ``rtn``, ``mse`` or ``hqq`` (:mod:`onnxforge.passes.block_grids`)."""
    keep_blocks: bool = False
    """Weights that come in blocks of at most ``bits`` bits (of GGUF, GPTQ, AWQ) keep them."""
    plain_blocks: bool = False
    """Of those, only symmetric ones, cut to ``block_size``: what ONNX Runtime's fast CUDA kernels take."""
    min_elements: int = 4096
    """Smaller matrices stay float: they cost nothing and are often classifiers, which need the precision."""
    min_embedding: int = 2**20
    """Embeddings with fewer elements stay float, unless the head shares them."""
    skip: str = ""
    """A regular expression; weights and nodes whose name it finds stay float."""

    def requires(self, model: ir.Model) -> None:
        """Refuse options that MatMulNBits has no kernel for.

        Raises:
            PassRefused: ``bits``, ``block_size``, ``method`` or ``skip`` is not usable.
        """
        if self.bits not in (4, 8):
            raise PassRefused(f"{self.text()}: bits is {self.bits}; MatMulNBits is used with 4 or 8")
        if self.block_size not in (16, 32, 64, 128, 256):
            raise PassRefused(f"{self.text()}: block_size is {self.block_size}; use 16, 32, 64, 128 or 256")
        if self.method not in GRIDS:
            raise PassRefused(f"{self.text()}: method is {self.method!r}; use one of {', '.join(GRIDS)}")
        try:
            re.compile(self.skip)
        except re.error as problem:
            raise PassRefused(f"{self.text()}: skip is no regular expression ({problem})") from problem

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize every weight that qualifies; the others are noted with the reason."""
        made: dict[MatrixKey, QuantizedTable] = {}
        shapes = _Adjustments(BlockOffsets(model.graph), OrderedColumns(model.graph))
        changed = False
        for node in tuple(model.graph):
            if is_op(node, "MatMul") and not is_part(node):
                changed |= self._multiply(node, model.graph, made, shapes)
        for node in tuple(model.graph):
            if is_op(node, "Gather") and not int_attribute(node, "axis", 0):
                changed |= self._gather(node, model.graph, made)
        if changed:
            model.opset_imports.setdefault(CONTRIB, 1)
        return ir.passes.PassResult(model, modified=changed)

    def _scheme(self) -> BlockScheme:
        return BlockScheme(self.bits, self.block_size, self.symmetric, self.method)

    def _objection(self, weight: MatrixWeight, node: ir.Node, least: int) -> str | None:
        """Why ``weight`` stays float, or None."""
        count, width = weight.size
        if self.skip and any(re.search(self.skip, name or "") for name in (weight.value.name, node.name)):
            return f"its name matches skip={self.skip!r}"
        if weight.tensor.dtype not in _FLOATS:
            return f"its dtype is {weight.tensor.dtype}; float32 or float16 is needed"
        if width % self.block_size and not self._kept(weight):
            return f"K is {width}, which is no multiple of block_size {self.block_size}"
        if count * width < least:
            return f"{count * width} elements are fewer than {least}"
        return None

    def _multiply(
        self,
        node: ir.Node,
        graph: ir.Graph,
        made: dict[MatrixKey, QuantizedTable],
        shapes: _Adjustments,
    ) -> bool:
        weight = _weight_of(node)
        if weight is None:
            return False
        objection = self._objection(weight, node, self.min_elements)
        if objection is not None:
            notes.near_miss(WHAT, node.name, objection)
            return False
        stored = made.get(weight.key)
        if stored is None:
            stored = made[weight.key] = self._store(graph, weight, node)
        self._emit(node, stored, weight, shapes)
        notes.match(WHAT, node.name)
        return True

    def _kept(self, weight: MatrixWeight) -> StoredBlocks | None:
        """The blocks of ``weight`` that stay, in the form in which they stay; None where it is rounded."""
        found = stored_blocks(weight.tensor, transposed=weight.transposed) if self.keep_blocks else None
        if found is None or self._unkept(found):
            return None
        return cut(found, self.block_size) if self.plain_blocks else found

    def _unkept(self, found: StoredBlocks) -> str:
        """Why blocks cannot stay, or an empty string."""
        bits, block_size, origin = found.form
        if bits > self.bits:
            return f"its blocks have {bits} bits, more than {self.bits}"
        if self.plain_blocks and origin != MIDDLE:
            return f"each of its blocks has its own {origin}; symmetric blocks are needed"
        if self.plain_blocks and block_size % self.block_size:
            return f"its blocks of {block_size} cannot be cut to {self.block_size}"
        return ""

    def _store(self, graph: ir.Graph, weight: MatrixWeight, node: ir.Node) -> QuantizedTable:
        kept = self._kept(weight)
        if kept is not None:
            notes.match("kept blocks", node.name)
            return store_kept(graph, weight, kept)
        if self.keep_blocks:
            found = stored_blocks(weight.tensor, transposed=weight.transposed)
            reason = self._unkept(found) if found is not None else "its weight comes in no blocks"
            notes.near_miss("kept blocks", node.name, f"{reason}; rounded")
        return store(graph, weight, self._scheme())

    def _emit(
        self, node: ir.Node, stored: QuantizedTable, weight: MatrixWeight, shapes: _Adjustments
    ) -> None:
        data, result = node.inputs[0], node.outputs[0]
        if stored.order is not None and data is not None:
            data = shapes.order.of(data, stored.order, node)
        inputs = [data, stored.packed, stored.scales]
        add = only_use(result)
        bias = _bias(add, result) if add is not None else None
        if add is not None and bias is not None:
            result = add.outputs[0]
            inputs += [stored.zeros, None, bias]
        elif stored.zeros is not None:
            inputs.append(stored.zeros)
        count, width = weight.size
        attributes: dict[str, int | float | str] = {
            "K": width,
            "N": count,
            "bits": stored.scheme.bits,
            "block_size": stored.scheme.block_size,
            "accuracy_level": self.accuracy_level,
        }
        name = f"{node.name or node.outputs[0].name}_Q{stored.scheme.bits}"
        new = make(WHAT, inputs, like=result, name=name, domain=CONTRIB, attributes=attributes)
        last = result.producer()
        assert last is not None
        insert_after(last, new)
        total = new.outputs[0]
        if stored.offsets is not None:
            total = shapes.offsets.add(new, stored)
        redirect(result, total)
        remove_dead([last])

    def _gather(self, node: ir.Node, graph: ir.Graph, made: dict[MatrixKey, QuantizedTable]) -> bool:
        table = node.inputs[0]
        tensor = constant(table)
        if tensor is None or table is None or len(tensor.shape) != 2:
            return False
        weight = MatrixWeight(table, tensor, transposed=False)
        stored = made.get(weight.key)
        if stored is None:
            if tensor.dtype not in _FLOATS or tensor.size < self.min_embedding:
                return False
            kept, objection = self._kept(weight), self._objection(weight, node, self.min_embedding)
            if kept is not None and kept.order is not None:
                objection = "its blocks hold columns that are no neighbours"
            if objection is not None:
                notes.near_miss("quantized embedding", node.name, objection)
                return False
            stored = made[weight.key] = self._store(graph, weight, node)
        return dequantized_gather(node, stored)


def _weight_of(node: ir.Node) -> MatrixWeight | None:
    """The constant matrix that a MatMul multiplies by, also behind the Transpose of a tied embedding."""
    value = node.inputs[1]
    tensor = constant(value)
    if value is not None and tensor is not None:
        return MatrixWeight(value, tensor, transposed=True) if len(tensor.shape) == 2 else None
    turned = producer(value, "Transpose")
    source = turned.inputs[0] if turned is not None else None
    tensor = constant(source)
    if turned is None or source is None or tensor is None or len(tensor.shape) != 2:
        return None
    perm = turned.attributes.get("perm")
    turns = perm is None or list(perm.as_ints()) == [1, 0]
    return MatrixWeight(source, tensor, transposed=False) if turns else None


def _bias(add: ir.Node, product: ir.Value) -> ir.Value | None:
    if not is_op(add, "Add"):
        return None
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    tensor = constant(other)
    return other if tensor is not None and len(tensor.shape) == 1 and tensor.size > 1 else None
