"""Find attentions, whatever world they come from, and describe them in one record.

Three forms are understood::

    Attention(q, k, v, mask)                                          opset 23
    MatMul -> [scale, softcap, mask] -> Softmax -> [guard] -> MatMul  TorchScript-era and SDPA decompositions
    either of them over Concat(past, new)                             decoders

What the nodes mean is settled by evaluation (:mod:`onnxforge.passes.subgraph_probe`); their types only say
where to look.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.attention_heads import Operand
from onnxforge.passes.matching import input_at, int_attribute, is_op, only_use
from onnxforge.passes.subgraph_probe import Probe

_STEPS = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Where",
        "Cast",
        "Tanh",
        "Reshape",
        "Identity",
        "Unsqueeze",
        "Squeeze",
        "Max",
    ]
)
_DEEPEST = 24


class NotAttention(Exception):
    """It looked like an attention and is none that can be fused; the message is the reason."""


@dataclass(frozen=True)
class OperatorScores:
    """The part of an ``Attention`` operator between the products."""

    mask: ir.Value | None
    scale: float
    softcap: float


@dataclass(frozen=True)
class RawScores:
    """The nodes between the two products of an attention that was written out."""

    product: ir.Value
    """q @ k^T, [B, H, S, T] or with batch and heads in one axis."""
    softmax_input: ir.Value
    operands: tuple[ir.Value, ...]
    """What is added, multiplied or selected on the way and is not a constant."""
    ops: tuple[str, ...]
    added: tuple[ir.Value, ...] | None
    """The values whose sum is added to the scaled scores; None where something else happens to them."""


@dataclass(frozen=True)
class Core:
    """One attention: softmax(f(q k^T)) v, with heads not yet traced to their projections."""

    anchor: ir.Node
    """The node that computes ``output``; a replacement stands right before it."""
    query: Operand
    key: Operand
    value: Operand
    output: ir.Value
    """[B, H, S, D]"""
    scores: OperatorScores | RawScores

    @property
    def where(self) -> str:
        """The place, for notes."""
        return self.anchor.name or self.output.name or "(unnamed)"


def candidates(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes at which an attention may be found: ``Attention`` of opset 23, and every ``Softmax``."""
    for node in graph:
        if is_op(node, "Attention", "Softmax"):
            yield node


def describe(node: ir.Node, probe: Probe) -> Core | None:
    """The attention at ``node``; None for a Softmax that has nothing to do with one.

    Raises:
        NotAttention: it is an attention of a form that is not understood.
        Unprobeable: a shape that is needed does not follow from the graph.
    """
    return _operator(node, probe) if node.op_type == "Attention" else _written_out(node, probe)


def _operator(node: ir.Node, probe: Probe) -> Core:
    query, key, value = (input_at(node, index) for index in range(3))
    if query is None or key is None or value is None:
        raise NotAttention("Attention lacks query, key or value")
    if any(input_at(node, index) is not None for index in range(4, len(node.inputs))):
        raise NotAttention(
            "Attention keeps its own past or padding inputs; only Concat(past, new) is understood"
        )
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        raise NotAttention("a second output of Attention is used")
    if int_attribute(node, "is_causal", 0):
        raise NotAttention(
            "is_causal is set, which aligns the mask with the first key; only explicit masks are"
        )
    shape, key_shape, value_shape = (probe.shape(item) for item in (query, key, value))
    if not len(shape) == len(key_shape) == len(value_shape) == 4:
        raise NotAttention(f"query of shape {shape}: only four-dimensional heads are understood")
    scale = node.attributes.get_float("scale", 0.0) or shape[-1] ** -0.5
    softcap = node.attributes.get_float("softcap", 0.0)
    return Core(
        node,
        Operand(query, shape[1]),
        Operand(key, key_shape[1]),
        Operand(value, value_shape[1]),
        node.outputs[0],
        OperatorScores(input_at(node, 3), float(f"{scale:.7g}"), softcap),
    )


def _written_out(softmax: ir.Node, probe: Probe) -> Core | None:
    softmax_input = input_at(softmax, 0)
    output_product = _towards_values(softmax.outputs[0])
    if softmax_input is None or output_product is None:
        return None
    scores = _scores(softmax_input, probe)
    if scores is None:
        return None
    product = scores.product.producer()
    assert product is not None
    query, key, value = product.inputs[0], product.inputs[1], output_product.inputs[1]
    assert query is not None
    assert key is not None
    assert value is not None
    shape = probe.shape(scores.product)
    if int_attribute(softmax, "axis", -1) not in (-1, len(shape) - 1):
        raise NotAttention("Softmax does not run over the keys")
    heads = int(np.prod(shape[:-2])) // probe.sizes.batch
    output = output_product.outputs[0]
    return Core(
        output_product,
        Operand(query, heads),
        Operand(key, heads, transposed=True),
        Operand(value, heads),
        output,
        scores,
    )


def _towards_values(value: ir.Value) -> ir.Node | None:
    """The product of the probabilities ``value`` with the values, past casts and guards against NaN."""
    for _ in range(6):
        uses = [use.node for use in value.uses()]
        guards = [node for node in uses if is_op(node, "IsNaN")]
        readers = [node for node in uses if node not in guards]
        node = readers[0] if len(readers) == 1 else None
        if is_op(node, "MatMul") and node is not None:
            return node if node.inputs[0] is value and node.inputs[1] is not value else None
        if node is None or not (
            is_op(node, "Identity", "Cast", "Dropout") or _guards_nan(node, value, guards)
        ):
            return None
        value = node.outputs[0]
    return None


def _guards_nan(node: ir.Node, value: ir.Value, guards: list[ir.Node]) -> bool:
    """Whether ``node`` is Where(IsNaN(value), 0, value): it acts only on rows that see no key at all."""
    if not is_op(node, "Where") or node.inputs[2] is not value:
        return False
    condition = node.inputs[0].producer() if node.inputs[0] is not None else None
    return condition in guards and condition is not None and only_use(condition.outputs[0]) is node


def _scores(softmax_input: ir.Value, probe: Probe) -> RawScores | None:
    """The path from the softmax up to the product, choosing at each node the input that depends on data."""
    operands: list[ir.Value] = []
    ops: list[str] = []
    others: list[list[ir.Value]] = []
    value = softmax_input
    for _ in range(_DEEPEST):
        node = value.producer()
        if is_op(node, "MatMul") and node is not None:
            if any(item is None or probe.knows(item) for item in node.inputs) or len(probe.shape(value)) < 3:
                return None
            return RawScores(value, softmax_input, tuple(operands), tuple(ops), _added(ops, others))
        if node is None or not is_op(node, *_STEPS):
            return None
        inputs = [item for item in node.inputs if item is not None]
        live = [item for item in inputs if not probe.knows(item)]
        if len(live) > 1:
            live = [item for item in live if _leads_to_product(item, _DEEPEST)]
        if len(live) != 1:
            return None
        ops.append(node.op_type)
        others.append([item for item in inputs if item is not live[0]])
        operands += [item for item in inputs if item is not live[0] and item.producer() is not None]
        value = live[0]
    return None


def _added(ops: list[str], others: list[list[ir.Value]]) -> tuple[ir.Value, ...] | None:
    """The other operands of the Adds right before the softmax, if only scaling and capping precede."""
    count = next((index for index, op in enumerate(ops) if op != "Add"), len(ops))
    if not set(ops[count:]) <= {"Mul", "Div", "Tanh", "Cast", "Identity"}:
        return None
    return tuple(item for items in others[:count] for item in items)


def _leads_to_product(value: ir.Value, depth: int) -> bool:
    """Whether steps of a score computation lead from ``value`` up to a product of two computed values."""
    node = value.producer()
    if node is None or not depth:
        return False
    if is_op(node, "MatMul"):
        return all(item is not None and item.producer() is not None for item in node.inputs)
    if not is_op(node, *_STEPS):
        return False
    return any(item is not None and _leads_to_product(item, depth - 1) for item in node.inputs)


def bias(scores: OperatorScores | RawScores, probe: Probe) -> np.ndarray:
    """What the mask adds to the scores, float, broadcastable to [B, H, S, T]; very negative where forbidden.

    Raises:
        Unprobeable: it depends on weights or on token ids.
    """
    if isinstance(scores, OperatorScores):
        if scores.mask is None:
            return np.zeros((1, 1, 1, 1), np.float32)
        mask = probe.value(scores.mask)
        return np.where(mask, 0.0, -np.inf) if mask.dtype == np.bool_ else mask
    shape = probe.shape(scores.product)
    batch = probe.sizes.batch
    if "Reshape" not in scores.ops and len(shape) == 4:
        # One head is enough where nothing regroups heads; a mask that differs by head broadcasts it back.
        shape = (batch, 1, *shape[2:])
    return _run_scores(scores, probe, np.zeros(shape, np.float32)).reshape(batch, -1, *shape[-2:])


def linear_part(core: Core, probe: Probe) -> tuple[float, float]:
    """Scale s and softcap c between the products: ``c * tanh(s * x / c)``, or ``s * x`` with c = 0.

    Raises:
        NotAttention: the scores go through some other function.
        Unprobeable: the function depends on weights.
    """
    scores = core.scores
    if isinstance(scores, OperatorScores):
        return scores.scale, scores.softcap
    shape = probe.shape(scores.product)
    # What is merely added has no part in the function, and may depend on data.
    nothing = {item: np.zeros(probe.shape(item), np.float32) for item in scores.added or ()}
    base = _run_scores(scores, probe, np.zeros(shape, np.float32), nothing)
    free = np.broadcast_to(base == 0, base.shape)
    if not free.any():
        raise NotAttention("no score reaches the softmax without something added to it")

    def applied(x: np.ndarray) -> np.ndarray:
        return np.asarray(_run_scores(scores, probe, x.astype(np.float32), nothing)[free], np.float64)

    cap = float(f"{applied(np.full(shape, 1e30))[0]:.7g}") if "Tanh" in scores.ops else 0.0
    one = float(applied(np.ones(shape))[0])
    scale = cap * float(np.arctanh(one / cap)) if cap else one
    scale = float(f"{scale:.6g}" if cap else f"{scale:.7g}")
    x = np.random.default_rng(0).standard_normal(shape) * 4
    entered = x.reshape(base.shape)[free] * scale
    meant = cap * np.tanh(entered / cap) if cap else entered
    if not np.allclose(applied(x), meant, rtol=1e-4, atol=1e-5):
        raise NotAttention("between product and softmax the scores are neither scaled nor soft-capped")
    return scale, cap


def _run_scores(
    scores: RawScores, probe: Probe, product: np.ndarray, assumed: dict[ir.Value, np.ndarray] | None = None
) -> np.ndarray:
    return probe.assuming({scores.product: product, **(assumed or {})}).value(scores.softmax_input)
