"""MatMul in integers on both sides, or on the weight's, written as QuantizeLinear and DequantizeLinear."""

import re
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.activation_grid import ActivationGrid, grid_of
from onnxforge.passes.activation_range import range_of
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import constant, extents
from onnxforge.passes.kept_float import kept_float
from onnxforge.passes.linear_product import LinearProduct, linear_product
from onnxforge.passes.matching import int_attribute, is_op, rank
from onnxforge.passes.option_checks import check_pattern
from onnxforge.passes.qdq_emit import QdqWriter
from onnxforge.passes.qdq_scheme import NONE, TYPES, Granularity, WeightScheme, weight_scheme
from onnxforge.passes.qdq_support import Form, objection

WHAT = "quantized MatMul"
LOOKUP = "quantized lookup"


@dataclass(frozen=True)
class InsertQdq(GraphPass):
    """Quantize MatMuls (and Gemms) by a constant matrix, where the provider has a kernel for the result.

    ::

        MatMul(x, W)   ->   MatMul(DQ(Q(x, step, zero), step, zero), DQ(Wq, steps))    activations=uint8
                       ->   MatMul(x, DQ(Wq, steps))                                   activations=none
        Gemm(x, W, b)  ->   Add(MatMul(...), b)
        Gather(E, ids) ->   DQ(Gather(Eq, ids), Gather(steps, ids))                    embeddings=true

    **Static activations** get one grid per tensor over their calibrated range (zero is exact), and the
    result stays float: ONNX Runtime's CPU provider turns the pattern into one int8 product
    (MatMulIntegerToFloat), whose rows do not depend on one another. With ``dynamic`` the grid is taken anew
    over all tokens of a call: no calibration, but a token's result then depends on its neighbours. With
    ``per_token`` each row is divided by its largest magnitude and the result multiplied by it::

        MatMul(x, W)   ->   Mul(MatMul(DQ(Q(Div(x, size), 1/127, 128)), DQ(Wq, steps)), size)
                            size = Max(ReduceMax(Abs(x), -1), least)

    which needs no calibration either, keeps rows apart, and bears tokens far larger than the rest (per-token
    dynamic quantization: Yao et al. 2022, ZeroQuant, 2206.01861), at six small operators for each tensor.
    Run static ones after ``calibrate``; the others need none.

    One grid serves a tensor badly when a few tokens are far larger than the rest. ``min_sqnr_db`` leaves
    such MatMuls float, for another pass to take up, and so does the mark of :mod:`.kept_float`, which
    ``mix-precision`` sets where it measured that.

    **Weights alone**: ONNX Runtime (1.31) makes MatMulNBits of them when it loads the graph, on CPU and CUDA,
    with ``accuracy_level`` 4, which rounds activations to int8 too. The session entry
    ``session.qdq_matmulnbits_accuracy_level`` chooses another one.

    **Saturation**: x86 processors without VNNI add two products of uint8 and int8 in 16 bits, and
    2 x 255 x 127 does not fit. ``reduce_range`` keeps the weights within 63, at the price of one bit; with
    VNNI or on Arm it only loses precision.

    Which combinations a provider runs is in :mod:`onnxforge.passes.qdq_support`; the others are refused.
    Source: Jacob et al. 2017 (1712.05877) for the arithmetic, the ONNX operator specification for the form.
    """

    summary: ClassVar[str] = "integer weights and activations (QDQ) where the provider multiplies them so"

    min_sqnr_db: float = 20.0
    """Least signal to noise of an ordinary token on the tensor's grid, in dB."""
    min_elements: int = 4096
    """Smaller matrices stay float."""
    skip: str = ""
    """A regular expression; weights and nodes whose name it finds stay float."""
    only: str = ""
    """A regular expression; weights and nodes whose name it does not find stay float."""
    weights: str = "int8"
    """``int8``, ``uint8``, ``int4``, ``uint4`` or ``int16``."""
    granularity: str = "channel"
    """One scale per ``tensor``, per ``channel`` (a column of W, a row of E) or per ``block`` along it."""
    block_size: int = 32
    symmetric: bool = True
    """Weights: a grid centred on zero; otherwise one that spans the range, with a zero point."""
    activations: str = "uint8"
    """``uint8``, ``int8``, ``uint16``, ``int16``, or ``none``: weights only."""
    symmetric_activations: bool = False
    dynamic: bool = False
    """Take the grid of activations over each call (DynamicQuantizeLinear) instead of from calibration."""
    per_token: bool = False
    """Give each row of activations a symmetric grid of its own in every call; no calibration, and rows do not
    depend on one another."""
    reduce_range: bool = False
    """int8 weights of 7 bits, for processors whose uint8 x int8 sums saturate."""
    embeddings: bool = False
    """Quantize constant tables that Gather reads rows of, too."""
    provider: str = "cpu"
    """Whose kernels are to take the result: ``cpu``, ``cuda``, ``tensorrt``; ``any`` asks nobody."""

    def requires(self, model: ir.Model) -> None:
        """Refuse what cannot be read, what the provider does not run, and a graph that was never calibrated.

        Raises:
            PassRefused: a pattern is no regular expression, the options name no form that ``provider`` runs,
                or activations are to be static and no product's input has a calibrated range.
        """
        for name, pattern in (("skip", self.skip), ("only", self.only)):
            check_pattern(self.text(), name, pattern)
        if found := objection(self._form(), self.provider, model.opset_imports.get("", 1)):
            raise PassRefused(f"{self.text()}: {found}")
        products = [product for node in model.graph if (product := linear_product(node))]
        if self._is_static and products and all(range_of(product.data) is None for product in products):
            raise PassRefused(f"{self.text()}: no activation has a range; put `calibrate` before this pass")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize what qualifies; the rest is noted with the reason."""
        writer = QdqWriter(model.graph, self._scheme(), lift=self.provider == "cpu")
        changed = False
        for node in tuple(model.graph):
            product = linear_product(node)
            if product is not None:
                changed |= self._multiply(product, writer)
            elif self.embeddings and is_op(node, "Gather") and not int_attribute(node, "axis", 0):
                changed |= self._lookup(node, writer)
        return ir.passes.PassResult(model, modified=changed)

    @property
    def _is_static(self) -> bool:
        return self.activations != NONE and not self.dynamic and not self.per_token

    def _form(self) -> Form:
        return Form(
            weights=self.weights,
            granularity=self.granularity,
            block_size=self.block_size,
            symmetric=self.symmetric,
            activations=self.activations,
            symmetric_activations=self.symmetric_activations,
            dynamic=self.dynamic,
            per_token=self.per_token,
            reduce_range=self.reduce_range,
            embeddings=self.embeddings,
        )

    def _scheme(self) -> WeightScheme:
        return weight_scheme(
            self.weights,
            self.granularity,
            self.block_size,
            symmetric=self.symmetric,
            reduce_range=self.reduce_range,
        )

    def _multiply(self, product: LinearProduct, writer: QdqWriter) -> bool:
        node, grid = product.node, self._grid(product)
        found = kept_float(node, static=not self.per_token)
        found = found or self._weight_objection(product.weight, product.tensor, node, product.size[0])
        found = found or self._activation_objection(product, grid)
        if found is not None:
            notes.near_miss(WHAT, node.name, found)
            return False
        if self.dynamic:
            writer.dynamic(product)
            notes.near_miss(
                "row-independent MatMul",
                node.name,
                "its activations get one grid per call, so a token's result depends on the others in it; "
                "`calibrate` and dynamic=false make it independent",
            )
        elif self.per_token:
            writer.per_token(product)
        elif grid is not None:
            writer.static(product, grid)
        else:
            writer.weight_only(product)
        notes.match(WHAT, node.name)
        return True

    def _lookup(self, node: ir.Node, writer: QdqWriter) -> bool:
        table, ids = node.inputs[0], node.inputs[1]
        tensor = constant(table)
        if table is None or tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
            return False
        if any(is_op(use.node, "DequantizeLinear") for use in node.outputs[0].uses()):
            return False  # it looks up scales
        size = rank(ids) if ids is not None else None
        found = "the rank of the ids is not known" if size is None else None
        found = found or self._weight_objection(table, tensor, node, extents(tensor)[1])
        if found is not None or size is None:
            notes.near_miss(LOOKUP, node.name, found or "")
            return False
        writer.lookup(node, tensor, size)
        notes.match(LOOKUP, node.name)
        return True

    def _grid(self, product: LinearProduct) -> ActivationGrid | None:
        found = range_of(product.data)
        if self.activations == NONE or self.per_token or found is None:
            return None
        return grid_of(found, TYPES[self.activations], symmetric=self.symmetric_activations)

    def _weight_objection(
        self, weight: ir.Value, tensor: ir.TensorProtocol, node: ir.Node, width: int
    ) -> str | None:
        names = [name or "" for name in (weight.name, node.name)]
        if self.skip and any(re.search(self.skip, name) for name in names):
            return f"its name matches skip={self.skip!r}"
        if self.only and not any(re.search(self.only, name) for name in names):
            return f"its name does not match only={self.only!r}"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"its weight is {tensor.dtype}; a float32 matrix is needed"
        if tensor.size < self.min_elements:
            return f"{tensor.size} elements are fewer than {self.min_elements}"
        if self.granularity == Granularity.BLOCK and width % self.block_size:
            return f"K is {width}, which is no multiple of block_size {self.block_size}"
        return None

    def _activation_objection(self, product: LinearProduct, grid: ActivationGrid | None) -> str | None:
        """Why one grid does not serve the product's data; a dynamic one is judged where a range is known."""
        found = range_of(product.data)
        if grid is None or found is None:
            return "its input has no calibrated range" if self._is_static else None
        ratio = grid.ordinary_sqnr_db(found.typical)
        if ratio >= self.min_sqnr_db:
            return None
        return (
            f"an ordinary token keeps {ratio:.1f} dB on the grid of the whole range (largest "
            f"{found.largest.max():.3g}, typical {found.typical:.3g}); {self.min_sqnr_db:g} dB are needed"
        )
