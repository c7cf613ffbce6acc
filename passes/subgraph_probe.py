"""Ask a graph what it computes, by running small pieces of it on small concrete sizes.

A *probe* fixes batch, sequence and past length and answers two questions about any value of the graph::

    probe.shape(v)   the concrete shape, also behind matrix products and weights: shapes need no data
    probe.value(v)   the array, where it follows from shapes, constants, attention_mask and position_ids alone

Both are computed on demand, so a question about a mask touches the mask's own nodes and the shapes it reads,
never a weight. `Probe.assuming` answers the same under given values for some intermediate results, which is
how a chain of reshapes is told apart from a chain that scrambles heads: feed random numbers, compare.

Nodes run in ONNX's reference evaluator; shapes come from ONNX's own shape inference where no rule below is
shorter.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.serde import serialize_node

from onnxforge.passes.matching import int_attribute
from onnxforge.passes.probe_shapes import AS_FIRST, BROADCAST, ShapeProblem, infer, matmul_shape

LIMIT = 2**25
"""The largest array a probe computes, in elements."""

_WEIGHT = 2**16
"""A float constant above this many elements is a weight, and its bytes stay where they are."""

_KEPT = 2**16


class Unprobeable(Exception):
    """The question has no answer at these sizes; the message says which value stood in the way."""


class TooLarge(Unprobeable):
    """An array would exceed :data:`LIMIT` elements."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of one probe: B, S and P; the mask spans T = P + S slots."""

    batch: int
    sequence: int
    past: int

    @property
    def total(self) -> int:
        """T: slots that the attention mask covers."""
        return self.past + self.sequence


class _Want(NamedTuple):
    value: ir.Value
    data: bool
    """The array is wanted; otherwise the shape."""


@dataclass(frozen=True)
class _Constant:
    shape: tuple[int, ...]
    array: np.ndarray | None
    """None for a weight."""


_Answer = np.ndarray | tuple[int, ...] | Unprobeable


class Bench:
    """The probes of one graph, and evaluators of its nodes. Good for as long as the graph does not change."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._opsets = dict(graph.opset_imports) or {"": 23}
        self._evaluators: dict[ir.Node, ReferenceEvaluator] = {}
        self._constants: dict[ir.Value, _Constant] = {}
        self._probes: dict[tuple[Sizes, bytes], Probe] = {}

    def probe(self, sizes: Sizes, mask: np.ndarray | None = None) -> "Probe":
        """The probe of these sizes; ``mask`` is int64 [B, T], 1 for a token, and all ones by default."""
        key = (sizes, b"" if mask is None else mask.tobytes())
        if key not in self._probes:
            self._probes[key] = Probe(self, sizes, mask=mask)
        return self._probes[key]

    def forget_large(self) -> None:
        """Let go of arrays that are costly to keep; the probes compute them again when asked."""
        for probe in self._probes.values():
            probe.forget_large()

    def run(self, node: ir.Node, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Every output of ``node`` for the given inputs.

        Raises:
            Unprobeable: the evaluator does not know the operator, or these inputs do not fit it.
        """
        try:
            if node not in self._evaluators:
                self._evaluators[node] = ReferenceEvaluator(serialize_node(node), opsets=self._opsets)
            with np.errstate(all="ignore"):
                return [np.asarray(item) for item in self._evaluators[node].run(None, feeds)]
        except Exception as error:
            # Every operator of the evaluator raises types of its own; to the question asked they all mean no.
            raise Unprobeable(f"{node.op_type} {node.name!r} cannot be evaluated: {error}") from error

    def constant(self, value: ir.Value) -> _Constant:
        """The shape of an initializer or of a Constant node, and its array unless it is a weight.

        Raises:
            Unprobeable: ``value`` is neither.
        """
        if value not in self._constants:
            tensor = ir.convenience.get_const_tensor(value)
            if tensor is None:
                raise Unprobeable(f"{value.name!r} has no known value")
            shape = tuple(int(dim) for dim in tensor.shape.numpy())
            limit = _WEIGHT if tensor.dtype.is_floating_point() else LIMIT
            readable = not isinstance(tensor, ir.LazyTensor) and tensor.size <= limit
            self._constants[value] = _Constant(shape, tensor.numpy() if readable else None)
        return self._constants[value]

    def infer(
        self, node: ir.Node, shapes: list[tuple[int, ...] | None], data: dict[int, np.ndarray]
    ) -> list[tuple[int, ...]]:
        """Every output shape of ``node`` by ONNX's shape inference."""
        return infer(node, shapes, data, self._opsets)


class Probe:
    """One choice of sizes, mask and positions; answers are remembered while the graph does not change."""

    def __init__(
        self,
        bench: Bench,
        sizes: Sizes,
        *,
        mask: np.ndarray | None = None,
        assumed: Mapping[ir.Value, np.ndarray] | None = None,
        parent: "Probe | None" = None,
    ) -> None:
        self.sizes = sizes
        self.mask = np.ones((sizes.batch, sizes.total), np.int64) if mask is None else mask
        """int64 [B, T]: 1 for a token, 0 for padding or for a hole in the cache."""
        self._bench = bench
        self._parent = parent
        self._answers: dict[_Want, _Answer] = {}
        self._large: list[_Want] = []
        for value, array in (assumed or {}).items():
            self._answers[_Want(value, True)] = array
            self._answers[_Want(value, False)] = array.shape

    def assuming(self, values: Mapping[ir.Value, np.ndarray]) -> "Probe":
        """A probe that takes ``values`` as given, and this one's answers for the rest."""
        return Probe(self._bench, self.sizes, mask=self.mask, assumed=values, parent=self)

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The concrete shape of ``value``; raises :class:`Unprobeable`."""
        answer = self._answer(_Want(value, data=False))
        assert isinstance(answer, tuple)
        return answer

    def value(self, value: ir.Value) -> np.ndarray:
        """The array of ``value``; raises :class:`Unprobeable` where it depends on weights or on token ids."""
        answer = self._answer(_Want(value, data=True))
        assert isinstance(answer, np.ndarray)
        return answer

    def knows(self, value: ir.Value) -> bool:
        """Whether the array of ``value`` follows from shapes, constants, mask and positions."""
        return isinstance(self._resolve(_Want(value, data=True)), np.ndarray)

    def forget_large(self) -> None:
        """Drop every remembered array of more than :data:`_KEPT` elements."""
        for want in self._large:
            del self._answers[want]
        self._large.clear()

    def _answer(self, want: _Want) -> np.ndarray | tuple[int, ...]:
        answer = self._resolve(want)
        if isinstance(answer, Unprobeable):
            raise answer
        return answer

    def _resolve(self, want: _Want) -> _Answer:
        """Depth first with a stack of our own: the shape of layer 30 is thousands of nodes deep."""
        stack = [want]
        while stack:
            top = stack[-1]
            if top in self._answers:
                stack.pop()
                continue
            known = self._from_parent(top)
            if known is not None:
                self._answers[top] = known
                continue
            try:
                missing = [need for need in self._needs(top) if not self._has(need)]
                if missing:
                    stack += missing
                    continue
                self._compute(top)
            except Unprobeable as problem:
                self._answers[top] = problem
        return self._answers[want]

    def _from_parent(self, want: _Want) -> np.ndarray | tuple[int, ...] | None:
        if self._parent is None:
            return None
        answer = self._parent._resolve(want)
        return None if isinstance(answer, Unprobeable) else answer

    def _has(self, want: _Want) -> bool:
        answer = self._answers.get(want)
        if isinstance(answer, Unprobeable):
            raise answer
        return answer is not None

    def _needs(self, want: _Want) -> Iterator[_Want]:
        """What has to be known before ``want`` can be computed."""
        node = want.value.producer()
        if node is None or node.op_type == "Constant":
            return
        if want.data:
            data = node.op_type not in ("Shape", "Size")
            yield from (_Want(item, data) for item in node.inputs if item is not None)
            return
        if node.op_type in AS_FIRST and want.value is node.outputs[0]:
            yield _Want(_first(node), data=False)
            return
        shapeful = node.op_type in BROADCAST or node.op_type in ("MatMul", "Transpose", "Concat")
        for index, item in enumerate(node.inputs):
            if item is None:
                continue
            yield _Want(item, data=False)
            integral = item.dtype is None or item.dtype in (ir.DataType.INT64, ir.DataType.INT32)
            # Axes, sizes and repeats shape the output: inference has to see their values.
            if not shapeful and (index or node.op_type in _SIZED) and (integral or node.op_type in _SIZED):
                yield from self._wanted_data(item)

    def _wanted_data(self, item: ir.Value) -> Iterator[_Want]:
        want = _Want(item, data=True)
        if want not in self._answers or not isinstance(self._answers[want], Unprobeable):
            yield want

    def _compute(self, want: _Want) -> None:
        node = want.value.producer()
        if node is None or node.op_type == "Constant":
            self._answers[want] = self._leaf(want)
        elif want.data:
            self._run(node)
        else:
            self._infer(node)

    def _leaf(self, want: _Want) -> np.ndarray | tuple[int, ...]:
        if want.value.is_graph_input():
            return self._given(want)
        constant = self._bench.constant(want.value)
        if not want.data:
            return constant.shape
        if constant.array is None:
            raise Unprobeable(f"it depends on the weight {want.value.name!r}")
        return constant.array

    def _given(self, want: _Want) -> np.ndarray | tuple[int, ...]:
        name = want.value.name or ""
        sizes = self.sizes
        if want.data:
            if name == "attention_mask":
                return self.mask
            if name == "position_ids":
                positions: np.ndarray = np.maximum(np.cumsum(self.mask, axis=1) - 1, 0)
                return positions[:, sizes.past :]
            raise Unprobeable(f"it depends on the contents of the graph input {name!r}")
        if want.value.shape is None:
            raise Unprobeable(f"the graph input {name!r} has no declared shape")
        span = sizes.total if name == "attention_mask" else sizes.sequence
        lengths = {0: sizes.batch, 1: span}
        if len(want.value.shape) == 4:
            lengths = {0: sizes.batch, 2: sizes.past}
        dims = tuple(
            dim if isinstance(dim, int) else lengths.get(i, -1) for i, dim in enumerate(want.value.shape)
        )
        if -1 in dims:
            raise Unprobeable(f"the graph input {name!r} has an unknown dimension: {want.value.shape}")
        return dims

    def _run(self, node: ir.Node) -> None:
        if node.op_type.startswith("Random"):
            raise Unprobeable(f"it depends on chance: {node.op_type} {node.name!r}")
        if node.op_type in ("Shape", "Size"):
            shape = self.shape(_first(node))
            start, end = int_attribute(node, "start", 0), int_attribute(node, "end", len(shape))
            size = np.array(prod(shape) if node.op_type == "Size" else shape[start:end], np.int64)
            self._answers[_Want(node.outputs[0], data=True)] = size
            return
        feeds = {item.name or "": self.value(item) for item in node.inputs if item is not None}
        _guard_size(node, list(feeds.values()))
        for output, array in zip(node.outputs, self._bench.run(node, feeds), strict=False):
            want = _Want(output, data=True)
            self._answers[want] = array
            if array.size > _KEPT:
                self._large.append(want)

    def _infer(self, node: ir.Node) -> None:
        if node.op_type in AS_FIRST:
            self._answers[_Want(node.outputs[0], data=False)] = self.shape(_first(node))
            return
        every = [None if item is None else self.shape(item) for item in node.inputs]
        known = [shape for shape in every if shape is not None]
        try:
            if node.op_type in BROADCAST:
                found = [np.broadcast_shapes(*known)]
            elif node.op_type == "MatMul":
                found = [matmul_shape(known[0], known[1])]
            else:
                data = {index: self.value(item) for index, item in self._readable(node)}
                found = self._bench.infer(node, every, data)
        except (ShapeProblem, ValueError) as error:
            raise Unprobeable(f"the shape of {node.op_type} {node.name!r}: {error}") from error
        for output, shape in zip(node.outputs, found, strict=False):
            self._answers[_Want(output, data=False)] = tuple(shape)

    def _readable(self, node: ir.Node) -> Iterator[tuple[int, ir.Value]]:
        for index, item in enumerate(node.inputs):
            if item is not None and isinstance(self._answers.get(_Want(item, data=True)), np.ndarray):
                yield index, item


_SIZED = frozenset({"Range", "ConstantOfShape"})


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0] if node.inputs else None
    if value is None:
        raise Unprobeable(f"{node.op_type} {node.name!r} lacks its first input")
    return value


def _guard_size(node: ir.Node, arrays: list[np.ndarray]) -> None:
    if node.op_type in ("Expand", "ConstantOfShape"):
        size = prod(int(dim) for dim in arrays[-1])
    elif node.op_type in BROADCAST:
        try:
            size = prod(np.broadcast_shapes(*(array.shape for array in arrays)))
        except ValueError as error:
            raise Unprobeable(f"{node.op_type} {node.name!r}: {error}") from error
    else:
        size = 0
    if size > LIMIT:
        raise TooLarge(f"{node.op_type} {node.name!r} would have {size} elements")
