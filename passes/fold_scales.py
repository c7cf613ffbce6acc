"""Even out the channels that a quantized MatMul reads, by scales that fold into the weights around it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.activation_range import ActivationRange, annotate, range_of
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.constants import add_initializer, constant, extents
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.matching import CONTRIB, input_at, is_op, only_use, producer

WHAT = "folded scales"
_NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")
_LEAST = 1e-5
Scaled = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Site:
    """A value, the matrices that multiply it, and how what makes it takes a division of its channels."""

    value: ir.Value
    readers: tuple[ir.Node, ...]
    made_by: tuple[tuple[ir.Node, int], ...]
    """Constant inputs (node, index) whose last axis runs over the channels, and that are to be divided."""


@dataclass(frozen=True)
class FoldScales(GraphPass):
    """Divide each channel of a MatMul's input by a scale, and multiply the matrix's rows by it.

    ::

        norm          MatMul(Norm(x) * gamma, W)     ->  gamma / s,  s * W
        up -> down    MatMul(act(gate) * (h @ U), W) ->  U / s,      s * W

    Exact in real numbers, and within 1e-5 relative in float32. The scale of channel k is
    max|x_k|^alpha / max|W_k|^(1 - alpha): the larger ``alpha``, the more of the activations' spread moves
    into the weights, whose grid per column takes it better. In the up -> down form the nonlinearity is on the
    other factor, so the product takes any scale through its linear one. Needs ``calibrate`` before it.

    Source: Xiao et al. 2022, SmoothQuant (2211.10438), equation 4; the up -> down rule as in AWQ
    (2306.00978).
    """

    summary: ClassVar[str] = "SmoothQuant scales, folded into norms and neighbouring weights"

    alpha: float = 0.65
    norms: bool = True
    """Fold through the norm in front of linear layers."""
    up_down: bool = True
    """Fold through the gated product in front of the down projection."""

    def requires(self, model: ir.Model) -> None:
        """Refuse an exponent that is none.

        Raises:
            PassRefused: ``alpha`` is outside 0..1.
        """
        if not 0 <= self.alpha <= 1:
            raise PassRefused(f"{self.text()}: alpha is {self.alpha}; it must be between 0 and 1")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold at every site that allows it; the others are noted with the reason."""
        seen: set[ir.Value] = set()
        changed = False
        for node in tuple(model.graph):
            data = input_at(node, 0)
            if not is_op(node, "MatMul") or data is None or data in seen or constant(node.inputs[1]) is None:
                continue
            seen.add(data)
            found = range_of(data)
            site = self._site(data)
            if found is None or site is None:
                continue
            objection = _objection(site)
            if objection is not None:
                notes.near_miss(WHAT, data.name, objection)
                continue
            _fold(model.graph, site, found, self.alpha)
            notes.match(WHAT, data.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _site(self, value: ir.Value) -> _Site | None:
        """The place that ``value`` is, when it is one of the two forms."""
        readers = tuple(use.node for use in value.uses())
        maker = value.producer()
        if maker is None:
            return None
        if self.norms and (is_op(maker, *_NORMS) or is_op(maker, *_NORMS, domain=CONTRIB)):
            count = len(maker.inputs)
            return _Site(
                value, readers, tuple((maker, index) for index in range(1, count) if maker.inputs[index])
            )
        if self.up_down and is_op(maker, "Mul"):
            for factor in (maker.inputs[1], maker.inputs[0]):
                linear = _linear(factor)
                if linear is not None:
                    return _Site(value, readers, linear)
        return None


def _linear(value: ir.Value | None) -> tuple[tuple[ir.Node, int], ...] | None:
    """The constants of ``h @ U [+ b]`` when ``value`` is one and nothing else reads it."""
    if value is None or only_use(value) is None:
        return None
    made: list[tuple[ir.Node, int]] = []
    add = producer(value, "Add")
    if add is not None:
        vectors = [index for index in (0, 1) if constant(add.inputs[index]) is not None]
        if len(vectors) != 1:
            return None
        made.append((add, vectors[0]))
        value = add.inputs[1 - vectors[0]]
        if value is None or only_use(value) is None:
            return None
    product = producer(value, "MatMul")
    if product is None or constant(product.inputs[1]) is None:
        return None
    return (*made, (product, 1))


def _objection(site: _Site) -> str | None:
    """Why the scales cannot fold here, or None."""
    if site.value.is_graph_output():
        return "the value is an output of the graph"
    for node in site.readers:
        tensor = constant(input_at(node, 1)) if is_op(node, "MatMul") else None
        if tensor is None or node.inputs[0] is not site.value or len(tensor.shape) != 2:
            return f"{node.op_type} {node.name!r} reads the value too, and has no matrix to take the scales"
        if tensor.dtype != ir.DataType.FLOAT:
            return f"the matrix of {node.name!r} is {tensor.dtype}; float32 is needed"
    for node, index in site.made_by:
        tensor = constant(node.inputs[index])
        if tensor is None or tensor.dtype != ir.DataType.FLOAT:
            return f"input {index} of {node.op_type} {node.name!r} is no float32 constant"
    return None


def _fold(graph: ir.Graph, site: _Site, found: ActivationRange, alpha: float) -> None:
    matrices = [tensor for node in site.readers if (tensor := constant(node.inputs[1])) is not None]
    scales = _scales(found.largest, matrices, alpha)
    for node, index in site.made_by:
        _replace(graph, node, index, lambda array: array / scales)
    for node in site.readers:
        _replace(graph, node, 1, lambda array: array * scales[:, None])
    annotate(site.value, found.divided(scales))


def _scales(largest: np.ndarray, matrices: Sequence[ir.TensorProtocol], alpha: float) -> np.ndarray:
    """float32 [K]; 1 for channels that carry nothing. Reads each matrix once."""
    rows = np.max([np.abs(tensor.numpy()).max(axis=1) for tensor in matrices], axis=0)
    scales = np.maximum(largest, _LEAST) ** alpha / np.maximum(rows, _LEAST) ** (1 - alpha)
    idle = (largest < _LEAST) | (rows < _LEAST)
    return np.where(idle, 1, np.maximum(scales, _LEAST)).astype(np.float32)


def _replace(graph: ir.Graph, node: ir.Node, index: int, scaled: Scaled) -> None:
    """A new initializer in place of input ``index``, computed when it is written; others keep the old one."""
    old = node.inputs[index]
    tensor = constant(old)
    assert old is not None
    assert tensor is not None
    width = extents(tensor)

    def compute() -> np.ndarray:
        result: np.ndarray = scaled(tensor.numpy()).astype(np.float32)
        return result

    new = lazy_tensor(compute, dtype=tensor.dtype, shape=width)
    node.replace_input_with(index, add_initializer(graph, f"{old.name}.scaled", new))
