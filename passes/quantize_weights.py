"""Weights in 8 or 4 bits, in blocks: MatMulNBits, with the embedding over the same bytes as the tied head."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.block_gptq import GPTQ
from onnxforge.passes.block_grids import GRIDS
from onnxforge.passes.block_offsets import BlockOffsets, is_part
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import constant
from onnxforge.passes.dequantized_gather import dequantized_gather
from onnxforge.passes.input_moments import moments_of
from onnxforge.passes.kept_blocks import KeptBlocks
from onnxforge.passes.matching import (
    CONTRIB,
    insert_after,
    int_attribute,
    is_op,
    make,
    only_use,
    redirect,
    remove_dead,
)
from onnxforge.passes.option_checks import check_choice, check_pattern
from onnxforge.passes.ordered_columns import OrderedColumns
from onnxforge.passes.quantized_table import MatrixKey, MatrixWeight, QuantizedTable, store, store_kept
from onnxforge.passes.stored_blocks import StoredBlocks
from onnxforge.passes.weight_inputs import inputs_by_weight, unmeasured, weight_of

WHAT = "MatMulNBits"
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


@dataclass(frozen=True)
class _Made:
    """What one run has added to its graph, to be shared; and which values each matrix multiplied before."""

    offsets: BlockOffsets
    order: OrderedColumns
    inputs: Mapping[MatrixKey, tuple[ir.Value, ...]]
    tables: dict[MatrixKey, QuantizedTable] = field(default_factory=dict)


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
    """How codes are found: ``rtn``, ``mse`` or ``hqq`` from a block (:mod:`onnxforge.passes.block_grids`),
    ``gptq`` from the whole matrix and what it multiplies (:mod:`onnxforge.passes.block_gptq`), for which
    ``correlate-inputs`` has to come before."""
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
            PassRefused: ``bits``, ``block_size``, ``method`` or ``skip`` is not usable, or the method wants
                moments of inputs that nobody measured.
        """
        if self.bits not in (4, 8):
            raise PassRefused(f"{self.text()}: bits is {self.bits}; MatMulNBits is used with 4 or 8")
        if self.block_size not in (16, 32, 64, 128, 256):
            raise PassRefused(f"{self.text()}: block_size is {self.block_size}; use 16, 32, 64, 128 or 256")
        check_choice(self.text(), "method", self.method, (*GRIDS, GPTQ))
        check_pattern(self.text(), "skip", self.skip)
        if self.method == GPTQ and (missing := unmeasured(self._rounded(model.graph))):
            raise PassRefused(
                f"{self.text()}: gptq needs the moments of what a matrix multiplies, and the inputs of "
                f"{len(missing)} products have none (the first is {missing[0]!r}); "
                "put `correlate-inputs` before this pass, or choose method=rtn"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize every weight that qualifies; the others are noted with the reason."""
        made = _Made(BlockOffsets(model.graph), OrderedColumns(model.graph), inputs_by_weight(model.graph))
        changed = False
        for node in tuple(model.graph):
            if is_op(node, "MatMul") and not is_part(node):
                changed |= self._multiply(node, model.graph, made)
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

    def _rounded(self, graph: ir.Graph) -> Iterator[ir.Node]:
        """The MatMuls whose matrix is to be rounded."""
        for node in graph:
            weight = weight_of(node) if is_op(node, "MatMul") and not is_part(node) else None
            if weight is None or self._objection(weight, node, self.min_elements) is not None:
                continue
            if self._kept(weight) is None:
                yield node

    def _multiply(
        self,
        node: ir.Node,
        graph: ir.Graph,
        made: _Made,
    ) -> bool:
        weight = weight_of(node)
        if weight is None:
            return False
        objection = self._objection(weight, node, self.min_elements)
        if objection is not None:
            notes.near_miss(WHAT, node.name, objection)
            return False
        self._emit(node, self._table(graph, weight, node, made), weight, made)
        notes.match(WHAT, node.name)
        return True

    def _kept(self, weight: MatrixWeight) -> StoredBlocks | None:
        """The blocks of ``weight`` that stay, in the form in which they stay; None where it is rounded."""
        return self._keeping().of(weight.tensor, transposed=weight.transposed) if self.keep_blocks else None

    def _keeping(self) -> KeptBlocks:
        return KeptBlocks(self.bits, self.block_size, self.plain_blocks)

    def _table(self, graph: ir.Graph, weight: MatrixWeight, node: ir.Node, made: _Made) -> QuantizedTable:
        """The quantized form of ``weight``, made when its first reader asks."""
        if weight.key not in made.tables:
            made.tables[weight.key] = self._store(graph, weight, node, made.inputs.get(weight.key, ()))
        return made.tables[weight.key]

    def _store(
        self, graph: ir.Graph, weight: MatrixWeight, node: ir.Node, inputs: Sequence[ir.Value]
    ) -> QuantizedTable:
        kept = self._kept(weight)
        if kept is not None:
            notes.match("kept blocks", node.name)
            return store_kept(graph, weight, kept)
        if self.keep_blocks:
            reason = self._keeping().reason(weight.tensor, transposed=weight.transposed)
            notes.near_miss("kept blocks", node.name, f"{reason}; rounded")
        if self.method != GPTQ:
            return store(graph, weight, self._scheme())
        measured = [moments for value in inputs if (moments := moments_of(value)) is not None]
        method = GPTQ if measured else "mse"  # an embedding that nothing multiplies has only itself
        return store(graph, weight, replace(self._scheme(), method=method), measured)

    def _emit(self, node: ir.Node, stored: QuantizedTable, weight: MatrixWeight, made: _Made) -> None:
        data, result = node.inputs[0], node.outputs[0]
        if stored.order is not None and data is not None:
            data = made.order.of(data, stored.order, node)
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
            total = made.offsets.add(new, stored)
        redirect(result, total)
        remove_dead([last])

    def _gather(self, node: ir.Node, graph: ir.Graph, made: _Made) -> bool:
        table = node.inputs[0]
        tensor = constant(table)
        if tensor is None or table is None or len(tensor.shape) != 2:
            return False
        weight = MatrixWeight(table, tensor, transposed=False)
        if weight.key not in made.tables:
            if tensor.dtype not in _FLOATS or tensor.size < self.min_embedding:
                return False
            kept, objection = self._kept(weight), self._objection(weight, node, self.min_embedding)
            if kept is not None and kept.order is not None:
                objection = "its blocks hold columns that are no neighbours"
            if objection is not None:
                notes.near_miss("quantized embedding", node.name, objection)
                return False
        return dequantized_gather(node, self._table(graph, weight, node, made))


def _bias(add: ir.Node, product: ir.Value) -> ir.Value | None:
    if not is_op(add, "Add"):
        return None
    other = add.inputs[1] if add.inputs[0] is product else add.inputs[0]
    tensor = constant(other)
    return other if tensor is not None and len(tensor.shape) == 1 and tensor.size > 1 else None
