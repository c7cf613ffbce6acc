"""Activations written as arithmetic become one node."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import erf, pi, sqrt
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass
from onnxforge.passes.constants import constant, readable
from onnxforge.passes.folding import run_node
from onnxforge.passes.matching import (
    CONTRIB,
    insert_after,
    is_op,
    make,
    only_use,
    producer,
    redirect,
    remove_dead,
)

_ANCHORS = ("Erf", "Tanh", "Sigmoid")
_STEPS = ("Add", "Sub", "Mul", "Div", "Pow", "Neg", "Erf", "Tanh", "Sigmoid")
_MAX_STEPS_AFTER = 4
_MAX_NODES = 16
_GRID = np.linspace(-9, 9, 289, dtype=np.float32)
_TOLERANCE = 4e-6


@dataclass(frozen=True)
class _Activation:
    """A function of one number and the node that computes it."""

    label: str
    values: np.ndarray
    """The function on the grid, float32."""
    op_type: str
    domain: str = ""
    attributes: tuple[tuple[str, str | float], ...] = ()


def _on_grid(function: Callable[[float], float]) -> np.ndarray:
    return np.array([function(float(x)) for x in _GRID], dtype=np.float64)


def _sigmoid(x: float) -> float:
    return float(1 / (1 + np.exp(-x)))


_KNOWN = (
    _Activation("Gelu", _on_grid(lambda x: x * 0.5 * (1 + erf(x / sqrt(2)))), "Gelu"),
    _Activation(
        "Gelu (tanh)",
        _on_grid(lambda x: x * 0.5 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))),
        "Gelu",
        attributes=(("approximate", "tanh"),),
    ),
    _Activation("SiLU", _on_grid(lambda x: x * _sigmoid(x)), "QuickGelu", CONTRIB, (("alpha", 1.0),)),
    _Activation(
        "QuickGelu", _on_grid(lambda x: x * _sigmoid(1.702 * x)), "QuickGelu", CONTRIB, (("alpha", 1.702),)
    ),
)


@dataclass(frozen=True)
class FuseActivation(GraphPass):
    """Fuse GELU (erf and tanh), quick GELU and SiLU in whatever spelling they were written.

    ::

        Div, Erf, Add, Mul, Mul                  ->  Gelu
        Pow, Mul, Add, Mul, Tanh, Add, Mul, Mul  ->  Gelu<approximate="tanh">
        Sigmoid, Mul                             ->  com.microsoft QuickGelu<alpha=1>       (SiLU)
        Mul, Sigmoid, Mul                        ->  com.microsoft QuickGelu<alpha=1.702>

    The spelling is not matched but run: the elementwise nodes around an Erf, Tanh or Sigmoid are evaluated
    on a grid, and the values say which function they are. Below opset 20 the contrib operators Gelu and
    FastGelu are used.

    The forms, chosen by time in ONNX Runtime 1.31.1 on CPU (1536 wide, one thread; 1 row / 512 rows in us):
    GELU from 3.8 / 1788 to 1.5 / 1178 with Gelu (contrib Gelu is the same; BiasGelu is no faster than Add and
    Gelu, so a bias stays where it is, and MatMulNBits absorbs it); SiLU from 1.5 / 704 to 1.0 / 564 with
    QuickGelu, where Swish of opset 24 takes 2.4 / 912. Packing gate and up projection into one matrix product
    was measured too, and left out: at one row it loses 16% in float32 and gains 10% in 8 bits, at 512 rows
    nothing certain.

    Sources: Hendrycks and Gimpel 2016 (GELU), Elfwing et al. 2017 (SiLU).
    """

    summary: ClassVar[str] = "Gelu, SiLU and quick GELU from their arithmetic"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every activation found in the main graph."""
        changed = False
        for node in tuple(model.graph):
            if is_op(node, *_ANCHORS) and node.graph is not None:
                changed |= _fuse_at(node, model)
        return ir.passes.PassResult(model, modified=changed)


def _fuse_at(anchor: ir.Node, model: ir.Model) -> bool:
    found, seen = None, False
    for data, end in _candidates(anchor):
        region = _region(data, end)
        if region is None:
            continue
        seen = True
        known = _recognise(region, data, end, model.opset_imports)
        if known is not None:
            found = (known, data, end)
            break
    if found is None:
        if seen:
            reason = "its values are those of no activation this pass knows"
            notes.near_miss("activation", anchor.name, reason)
        return False
    known, data, end = found
    last = end.producer()
    assert last is not None
    op_type, domain, attributes = _form(known, model.opset_imports.get("", 1))
    name = f"{anchor.name or end.name}_{op_type}"
    node = make(op_type, (data,), like=end, name=name, domain=domain, attributes=dict(attributes))
    insert_after(last, node)
    redirect(end, node.outputs[0])
    remove_dead([last])
    if domain:
        model.opset_imports.setdefault(domain, 1)
    notes.match(known.label, name)
    return True


def _form(known: _Activation, version: int) -> tuple[str, str, tuple[tuple[str, str | float], ...]]:
    if known.op_type == "Gelu" and version < 20:
        return ("FastGelu" if known.attributes else "Gelu"), CONTRIB, ()
    return known.op_type, known.domain, known.attributes


def _candidates(anchor: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Pairs (x, f(x)): each product behind ``anchor``, with each tensor that it multiplies by."""
    value, inputs = anchor.outputs[0], list[ir.Value]()
    for _ in range(_MAX_STEPS_AFTER):
        step = only_use(value)
        if step is None or not is_op(step, "Add", "Mul", "Div"):
            return
        for other in step.inputs:
            if is_op(step, "Mul") and other is not None and other is not value and constant(other) is None:
                inputs += [other, *_behind_scaling(other)]
        value = step.outputs[0]
        for data in inputs:
            yield data, value


def _behind_scaling(value: ir.Value) -> list[ir.Value]:
    """``x`` where ``value`` is ``x * 0.5``."""
    node = producer(value, "Mul", "Div")
    if node is None:
        return []
    return [item for item in node.inputs if item is not None and constant(item) is None]


def _region(data: ir.Value, end: ir.Value) -> list[ir.Node] | None:
    """The elementwise nodes that compute ``end`` from ``data`` and scalars alone, in order."""
    order: list[ir.Node] = []
    done: set[ir.Node] = set()

    def visit(value: ir.Value) -> bool:
        if value is data:
            return True
        if constant(value) is not None:
            array = readable(value, 1)
            return array is not None
        node = value.producer()
        if node is None or not is_op(node, *_STEPS) or len(order) >= _MAX_NODES:
            return False
        if node in done:
            return True
        done.add(node)
        if not all(item is not None and visit(item) for item in node.inputs):
            return False
        order.append(node)
        return True

    return order if visit(end) else None


def _recognise(
    region: list[ir.Node], data: ir.Value, end: ir.Value, opsets: Mapping[str, int]
) -> _Activation | None:
    known: dict[ir.Value, np.ndarray] = {data: _GRID}
    for node in region:
        inputs: list[np.ndarray | None] = []
        for value in node.inputs:
            array = known.get(value) if value is not None else None
            array = readable(value, 1) if array is None else array
            inputs.append(array.astype(np.float32) if array is not None else None)
        known[node.outputs[0]] = run_node(node, inputs, opsets)[0]
    values = known[end]
    for activation in _KNOWN:
        if values.shape == _GRID.shape and np.abs(values - activation.values).max() <= _TOLERANCE:
            return activation
    return None
