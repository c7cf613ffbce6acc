"""A float32 graph, or a part of it, run in torch: with gradients, and with weights that can be trained.

A compile needs gradients for first-order scores and for distillation. The graph itself is what runs, so what
is trained is what is written: no module of a modelling library has to match it.

Every operator of the fused graphs and of TorchScript-era exports has a rule in torch. Another one of the main
domain runs under ONNX's reference operators where no gradient passes through it, and is refused elsewhere.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import torch

from onnxforge.compiler.torch_attention import ATTENTION
from onnxforge.compiler.torch_call import DTYPES, Call, Rule, refusal
from onnxforge.compiler.torch_elementwise import ELEMENTWISE
from onnxforge.compiler.torch_movement import MOVEMENT
from onnxforge.passes.constants import constant
from onnxforge.passes.folding import run_node

RULES: Mapping[tuple[str, str], Rule] = MappingProxyType({**ELEMENTWISE, **MOVEMENT, **ATTENTION})
Feeds: TypeAlias = Mapping[str, torch.Tensor]
_SIZES = ("Shape", "Size")
"""What reads the shape of a value takes nothing from its numbers."""


@dataclass
class Weights:
    """Tensors of a model in torch, each made once: graphs that share weights share a store."""

    _made: dict[int, tuple[ir.TensorProtocol, torch.Tensor]] = field(default_factory=dict)

    def of(self, tensor: ir.TensorProtocol) -> torch.Tensor:
        """``tensor`` in torch; never write into it."""
        if id(tensor) not in self._made:
            self._made[id(tensor)] = (tensor, in_torch(tensor))
        return self._made[id(tensor)][1]


def in_torch(tensor: ir.TensorProtocol) -> torch.Tensor:
    """A copy of ``tensor``, of its dtype.

    Raises:
        ValueError: torch has no such dtype.
    """
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise ValueError(f"{tensor.name!r} is {tensor.dtype}: not to be run in torch")
    array = tensor.numpy()
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    return torch.from_numpy(np.array(array, order="C"))


class TorchGraph:
    """What ``outputs`` need of ``graph``, from the values ``given`` on (by default the graph's inputs).

    Gradients are kept for ``leaves``: an initializer among them becomes a parameter (:attr:`parameters`), a
    value that a node makes is where gradients begin, unless they begin further up already.

    Weights are read when the object is made, only those that the part needs, and kept as long as it lives.
    """

    def __init__(
        self,
        graph: ir.Graph,
        outputs: Sequence[ir.Value],
        *,
        given: Collection[ir.Value] | None = None,
        leaves: Iterable[ir.Value] = (),
        weights: Weights | None = None,
    ) -> None:
        """Read the weights and find a rule for every node.

        Raises:
            PassRefused: a node that cannot run in torch, by name.
            ValueError: an output that does not follow from ``given``.
        """
        store = weights or Weights()
        self._outputs = tuple(outputs)
        self._leaves = frozenset(leaves)
        self._given = frozenset(graph.inputs if given is None else given)
        nodes, self._constants = _part(graph, self._outputs, self._given, store, self._leaves)
        self.parameters: dict[ir.Value, torch.nn.Parameter] = {
            value: torch.nn.Parameter(in_torch(tensor))
            for value in sorted(self._leaves, key=lambda leaf: leaf.name or "")
            if (tensor := constant(value)) is not None
        }
        opsets = graph.opset_imports
        reached = _reached(nodes, self._leaves)
        self._steps = [_Step(node, _rule(node, reached), opsets.get(node.domain, 1)) for node in nodes]
        self._last_use = _last_uses(nodes, self._outputs)
        self.needs = tuple(
            dict.fromkeys(value for node in nodes for value in node.inputs if value in self._given)
        )

    def __call__(self, feeds: Feeds) -> tuple[torch.Tensor, ...]:
        """The outputs, in the order asked for, for the given values by name.

        Raises:
            ValueError: a value that is needed is not fed.
            PassRefused: a node cannot run on these tensors, by name.
        """
        values: dict[ir.Value, torch.Tensor] = {**self._constants, **self.parameters}
        for value in self._given:
            if (name := value.name or "") in feeds:
                values[value] = self._marked(value, feeds[name])
        if missing := [value.name for value in self.needs if value not in values]:
            raise ValueError(f"not fed: {', '.join(map(str, missing))}")
        for index, step in enumerate(self._steps):
            inputs = tuple(values[value] if value is not None else None for value in step.node.inputs)
            made = step.run(inputs)
            for value, tensor in zip(step.node.outputs, made, strict=False):
                values[value] = self._marked(value, tensor)
            for value in self._last_use.get(index, ()):
                values.pop(value, None)
        return tuple(values[value] for value in self._outputs)

    def _marked(self, value: ir.Value, tensor: torch.Tensor) -> torch.Tensor:
        if value in self._leaves and torch.is_grad_enabled() and not tensor.requires_grad:
            return tensor.detach().requires_grad_()
        return tensor


@dataclass(frozen=True)
class _Step:
    node: ir.Node
    rule: Rule | None
    opset: int

    def run(self, inputs: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor, ...]:
        if self.rule is None:
            arrays = [tensor.detach().numpy() if tensor is not None else None for tensor in inputs]
            made = run_node(self.node, arrays, {self.node.domain: self.opset})
            return tuple(torch.from_numpy(np.array(array)) for array in made)
        try:
            found = self.rule(Call(self.node, inputs, self.opset))
        except (RuntimeError, IndexError) as problem:  # of torch: shapes and dtypes that do not fit
            raise refusal(self.node, str(problem).splitlines()[0]) from problem
        return found if isinstance(found, tuple) else (found,)


def _part(
    graph: ir.Graph,
    outputs: Sequence[ir.Value],
    given: Collection[ir.Value],
    weights: Weights,
    leaves: Collection[ir.Value],
) -> tuple[list[ir.Node], dict[ir.Value, torch.Tensor]]:
    """The nodes between ``given`` and ``outputs`` in graph order, and the constants that they read."""
    constants: dict[ir.Value, torch.Tensor] = {}
    needed: set[ir.Node] = set()
    pending = list(outputs)
    while pending:
        value = pending.pop()
        maker = value.producer()
        if value.const_value is not None and maker is None:
            if value not in constants and not (value in leaves and value not in given):
                constants[value] = weights.of(value.const_value)
        elif value in given or maker in needed:
            continue
        elif maker is None:
            raise ValueError(f"{value.name!r} is neither given nor made by a node")
        else:
            needed.add(maker)
            pending += [item for item in maker.inputs if item is not None]
    return [node for node in graph if node in needed], constants


def _reached(nodes: Sequence[ir.Node], leaves: Collection[ir.Value]) -> set[ir.Value]:
    """The values through which a gradient comes back to ``leaves``."""
    reached = set(leaves)
    for node in nodes:
        if node.op_type not in _SIZES and any(value in reached for value in node.inputs):
            reached.update(node.outputs)
    return reached


def _rule(node: ir.Node, reached: Collection[ir.Value]) -> Rule | None:
    """The rule for ``node``; None where ONNX's reference operator does as well.

    Raises:
        PassRefused: there is neither.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    rule = RULES.get((domain, node.op_type))
    if rule is not None:
        return rule
    if domain:
        raise refusal(node, "there is no rule for this operator")
    if any(value in reached for value in node.inputs):
        raise refusal(node, "there is no rule for this operator, and a gradient has to pass through it")
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attribute.type in graphs for attribute in node.attributes.values()):
        raise refusal(node, "it holds a graph of its own")
    return None


def _last_uses(nodes: Sequence[ir.Node], outputs: Sequence[ir.Value]) -> dict[int, list[ir.Value]]:
    """The values that nobody reads after a node, by its place: they can be forgotten there."""
    last: dict[ir.Value, int] = {}
    for index, node in enumerate(nodes):
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                last[value] = index
    kept = set(outputs)
    found: dict[int, list[ir.Value]] = {}
    for value, index in last.items():
        if value not in kept and value.producer() is not None:
            found.setdefault(index, []).append(value)
    return found
