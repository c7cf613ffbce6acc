"""Where the channels of a matrix's input can be divided by scales, and the matrix's rows multiplied by them.

::

    norm          MatMul(Norm(x) * gamma + beta, W)       ->  gamma / s, beta / s,  s * W
    up -> down    MatMul(act(gate) * (h @ U + b), W)      ->  U / s, b / s,         s * W
    v -> o        MatMul(Attention(q, k, h @ V + b), W)   ->  V / s, b / s,         s' * W

Exact in real numbers, and within 1e-5 relative in float32. An attention's output is linear in its values.
With grouped queries one channel of a value head is read by all query heads of its group, so ``s'`` repeats
its scale for each; a packed projection [Wq | Wk | Wv] takes the division in its last columns only. Past
values are those that the same graph returned, so they carry the division already.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.activation_range import annotate, range_of
from onnxforge.passes.cache_range import cache_range_of
from onnxforge.passes.constants import add_initializer, constant, extents
from onnxforge.passes.input_moments import leave_moments, moments_of
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.matching import CONTRIB, input_at, int_attribute, is_op, only_use, producer

_NORMS = ("RMSNormalization", "LayerNormalization", "SimplifiedLayerNormalization")


@dataclass(frozen=True)
class ScaleSite:
    """A value [..., K], the matrices that multiply it, and what makes it and takes the division."""

    value: ir.Value
    readers: tuple[ir.Node, ...]
    made_by: tuple[tuple[ir.Node, int], ...]
    """Constant inputs (node, index). The channels are the last entries of their last axis."""
    heads: tuple[int, int] = (1, 1)
    """Value heads, and the query heads that read each; the K inputs are heads x readers x size."""

    def matrices(self) -> list[ir.TensorProtocol]:
        """The [K, N] that multiply the value; what :func:`objection` passed has them all."""
        return [tensor for node in self.readers if (tensor := constant(node.inputs[1])) is not None]

    def channels(self) -> int:
        """C: how many scales there are."""
        return extents(self.matrices()[0])[0] // self.heads[1]

    def largest(self, per_input: np.ndarray) -> np.ndarray:
        """[C]: of numbers for each input [K], the largest among those that share a channel."""
        found: np.ndarray = self._grouped(per_input).max(axis=1).reshape(-1)
        return found

    def mean(self, per_input: np.ndarray) -> np.ndarray:
        """[C]: of numbers for each input [K], the mean over those that share a channel."""
        found: np.ndarray = self._grouped(per_input).mean(axis=1).reshape(-1)
        return found

    def spread(self, scales: np.ndarray) -> np.ndarray:
        """[K]: the scale of each input, from the scales of the channels [C]."""
        values, readers = self.heads
        return np.repeat(scales.reshape(values, 1, -1), readers, axis=1).reshape(-1)

    def _grouped(self, per_input: np.ndarray) -> np.ndarray:
        return per_input.reshape(*self.heads, -1)


def multiplied_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """The distinct values that a constant matrix multiplies, in graph order."""
    seen: set[ir.Value] = set()
    for node in tuple(graph):
        data = input_at(node, 0)
        if not is_op(node, "MatMul") or data is None or data in seen or constant(node.inputs[1]) is None:
            continue
        seen.add(data)
        yield data


def find_site(value: ir.Value, *, norms: bool, up_down: bool, values: bool) -> ScaleSite | None:
    """The place that ``value`` is, when it is one of the forms asked for."""
    site = _norm_site(value) if norms else None
    if site is None and up_down:
        site = _gated_site(value)
    return _attention_site(value) if site is None and values else site


def _norm_site(value: ir.Value) -> ScaleSite | None:
    """``value`` as the output of a norm with constant factors."""
    maker = value.producer()
    if maker is None or not (is_op(maker, *_NORMS) or is_op(maker, *_NORMS, domain=CONTRIB)):
        return None
    factors = tuple((maker, index) for index in range(1, len(maker.inputs)) if maker.inputs[index])
    return ScaleSite(value, _readers(value), factors)


def _gated_site(value: ir.Value) -> ScaleSite | None:
    """``value`` as a product of two factors, one of them linear in a matrix."""
    maker = producer(value, "Mul")
    for factor in (maker.inputs[1], maker.inputs[0]) if maker is not None else ():
        made_by = _linear(factor)
        if made_by is not None:
            return ScaleSite(value, _readers(value), made_by)
    return None


def _attention_site(value: ir.Value) -> ScaleSite | None:
    """``value`` as the output of an attention whose values come straight from a linear layer."""
    maker = value.producer()
    if maker is None or not is_op(maker, "GroupQueryAttention", "MultiHeadAttention", domain=CONTRIB):
        return None
    if value is not maker.outputs[0]:
        return None
    heads = int_attribute(maker, "num_heads", 0)
    source, values = input_at(maker, 2), int_attribute(maker, "kv_num_heads", heads)
    if is_op(maker, "MultiHeadAttention", domain=CONTRIB):
        source, values = (None if input_at(maker, 3) is not None else source), heads
    elif input_at(maker, 1) is None:
        source = input_at(maker, 0)  # packed: the values are its last columns
    made_by = _linear(source)
    if made_by is None or not heads or not values or heads % values:
        return None
    return ScaleSite(value, _readers(value), made_by, (values, heads // values))


def objection(site: ScaleSite) -> str | None:
    """Why the scales cannot fold here, or None."""
    if site.value.is_graph_output():
        return "the value is an output of the graph"
    maker = site.value.producer()
    if maker is not None and any(cache_range_of(output) is not None for output in maker.outputs):
        return "the range of its cache was measured already; put `calibrate-cache` behind this pass"
    if maker is not None and any(item.dtype == ir.DataType.INT8 for item in maker.inputs if item is not None):
        return "its cache is quantized already; put `quantize-cache` behind this pass"
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
        if not extents(tensor) or extents(tensor)[-1] < site.channels():
            return f"input {index} of {node.op_type} {node.name!r} has no entry for each channel"
    return None


def fold(graph: ir.Graph, site: ScaleSite, scales: np.ndarray) -> None:
    """Divide the channels by ``scales`` float32 [C], multiply the readers' rows, and keep what was seen."""
    spread = site.spread(scales)
    for node, index in site.made_by:
        _replace(graph, node, index, 1 / scales, rows=False)
    for node in site.readers:
        _replace(graph, node, 1, spread, rows=True)
    if (found := range_of(site.value)) is not None:
        annotate(site.value, found.divided(spread))
    if (moments := moments_of(site.value)) is not None:
        leave_moments(site.value, moments.divided(spread))


def _readers(value: ir.Value) -> tuple[ir.Node, ...]:
    return tuple(dict.fromkeys(use.node for use in value.uses()))


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


def _replace(graph: ir.Graph, node: ir.Node, index: int, factors: np.ndarray, *, rows: bool) -> None:
    """A new initializer in place of input ``index``, computed when it is written; others keep the old one.

    ``factors`` multiply the rows of a matrix, or the last entries of the last axis.
    """
    old = node.inputs[index]
    tensor = constant(old)
    assert old is not None
    assert tensor is not None

    def compute() -> np.ndarray:
        array = np.array(tensor.numpy(), dtype=np.float32)
        part = array if rows else array[..., array.shape[-1] - len(factors) :]
        part *= factors[:, None] if rows else factors
        return array

    new = lazy_tensor(compute, dtype=tensor.dtype, shape=extents(tensor))
    node.replace_input_with(index, add_initializer(graph, f"{old.name}.scaled", new))
