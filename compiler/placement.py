"""Which nodes of a graph the CUDA provider runs, and what is copied between it and the CPU: predicted.

After ONNX Runtime's rules (its sources: ``fallback_cpu_capability.cc``, ``transformer_memcpy.cc``,
``controlflow/loop.cc``). A node goes to CUDA if CUDA has a kernel for it, but nevertheless to the CPU if it
only computes with small numbers that are there already, such as shapes. What one side makes and the other
reads is copied by a *Memcpy* node, one for each such value. What a Loop carries from step to step lies on the
GPU, whoever made it.

bench/cuda_placement.py holds this against what ONNX Runtime does.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.compiler.cuda_kernels import HOST_OUTPUTS, CudaKernel, kernel_for
from onnxforge.compiler.structure_check import HALVES

_SMALL = 100
"""Elements of a constant that counts as small: ``kSmallInitializerThreshold``."""
_SUBGRAPH = "Loop"
_CACHE = ("past_key_values.", "present.")
_CARRIED = 2
"""Inputs of a Loop, and of its body, before what it carries: trip count and condition."""


@dataclass(frozen=True)
class Copy:
    """One value that crosses each time its graph runs."""

    value: ir.Value
    to_host: bool
    how: str
    """``Memcpy`` (a node that ONNX Runtime inserts), ``carried`` (at the edge of a Loop's body), ``fed`` or
    ``fetched`` (an input or output of the whole graph, which the caller has on the CPU)."""


@dataclass(frozen=True)
class PlacedGraph:
    """A graph, or the body of a Loop or a branch of an If, without what is nested in it."""

    path: str
    """``main``, ``main/Loop.body``, ..."""
    provider: tuple[ir.Node, ...]
    host: tuple[ir.Node, ...]
    unsupported: tuple[ir.Node, ...]
    """Those of ``host`` for which CUDA has no kernel; the others are small."""
    copies: tuple[Copy, ...]
    edges: tuple[Copy, ...] = ()
    """What the caller feeds and fetches, of a file's outermost graph; the cache stays where it is."""


def place(model: ir.Model) -> tuple[PlacedGraph, ...]:
    """Every graph of ``model``, from the outermost inwards."""
    return tuple(_Placer(model).graphs(model.graph, "main", None))


class _Placer:
    """Lives for one call."""

    def __init__(self, model: ir.Model) -> None:
        self._opsets = {("" if d == "ai.onnx" else d): version for d, version in model.opset_imports.items()}

    def graphs(self, graph: ir.Graph, path: str, parent: ir.Node | None) -> Iterator[PlacedGraph]:
        nodes = [node for node in graph if node.op_type != "Constant"]
        kernels = {node: self._kernel(node) for node in nodes}
        preferred = _preferred(graph, kernels)
        on_cuda = {
            node: kernel for node, kernel in kernels.items() if kernel is not None and node not in preferred
        }
        yield PlacedGraph(
            path,
            tuple(on_cuda),
            tuple(node for node in nodes if node not in on_cuda),
            tuple(node for node in nodes if kernels[node] is None),
            tuple(_copies(graph, nodes, on_cuda, parent)),
            tuple(_edges(graph, nodes, on_cuda)) if parent is None else (),
        )
        for node in nodes:
            for name, attribute in node.attributes.items():
                if attribute.type is ir.AttributeType.GRAPH:
                    yield from self.graphs(attribute.as_graph(), f"{path}/{node.op_type}.{name}", node)

    def _kernel(self, node: ir.Node) -> CudaKernel | None:
        domain = "" if node.domain == "ai.onnx" else node.domain
        return kernel_for(node, self._opsets.get(domain, 1))


def _preferred(graph: ir.Graph, kernels: dict[ir.Node, CudaKernel | None]) -> set[ir.Node]:
    """Nodes that CUDA could run and leaves to the CPU: ``GetCpuPreferredNodes``.

    Beginning with the readers of what kernels put into the CPU's memory, a node is left if all that it reads
    is there or a small constant or an input of the graph, nothing is float16, and the kernel would not have
    taken that very value from the CPU's memory. Its readers are asked next.
    """
    order = {node: index for index, node in enumerate(kernels)}
    inputs, host_values = set(graph.inputs), set[ir.Value]()
    waiting: set[ir.Node] = set()

    def now_on_host(node: ir.Node) -> None:
        host_values.update(node.outputs)
        waiting.update(reader for value in node.outputs for reader in value.consumers() if reader in order)

    for node, kernel in kernels.items():
        if kernel is not None and node.op_type in HOST_OUTPUTS:
            now_on_host(node)
    found, seen = set[ir.Node](), set[ir.Node]()
    while waiting:
        node = min(waiting, key=order.__getitem__)
        waiting.remove(node)
        if node in seen:
            continue
        seen.add(node)
        kernel = kernels[node]
        if kernel is not None and not all(
            value is None
            or (
                value.dtype not in HALVES
                and (
                    value in inputs or _is_small(value) or (value in host_values and index not in kernel.host)
                )
            )
            for index, value in enumerate(node.inputs)
        ):
            continue
        if kernel is not None:
            found.add(node)
        now_on_host(node)
    return found


def _is_small(value: ir.Value) -> bool:
    if value.is_initializer():
        return value.const_value is not None and value.const_value.size <= _SMALL
    node = value.producer()
    if node is None or node.op_type != "Constant":
        return False
    (attribute,) = node.attributes.values()
    tensor = attribute.value
    return tensor.size <= _SMALL if isinstance(tensor, ir.TensorProtocol) else True


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")


def _copies(
    graph: ir.Graph, nodes: list[ir.Node], on_cuda: dict[ir.Node, CudaKernel], parent: ir.Node | None
) -> Iterator[Copy]:
    """Memcpy nodes of ``graph``, and for a Loop's body what its edge copies."""
    device_reads, host_reads = dict[ir.Value, None](), dict[ir.Value, None]()
    device_makes, host_makes = dict[ir.Value, None](), dict[ir.Value, None]()
    for node in nodes:
        kernel = on_cuda.get(node)
        for index, value in enumerate(node.inputs):
            if value is not None:
                on_host = kernel is None or index in kernel.host
                (host_reads if on_host else device_reads)[value] = None
        makes = host_makes if kernel is None or node.op_type in HOST_OUTPUTS else device_makes
        makes.update(dict.fromkeys(node.outputs))
    inputs = set(graph.inputs)
    for value in device_reads:
        outside = value not in device_makes and value not in host_makes
        own = _is_constant(value) and value.graph is graph and value not in inputs  # kept twice instead
        if value in host_makes or (outside and value in host_reads and not own):
            yield Copy(value, to_host=False, how="Memcpy")
    for value in host_reads:
        if value in device_makes:
            yield Copy(value, to_host=True, how="Memcpy")
    if parent is not None and parent.op_type == _SUBGRAPH:
        for value in graph.inputs[_CARRIED:]:
            if value in host_reads and value not in device_reads:
                yield Copy(value, to_host=True, how="carried")
        for value in graph.outputs[1:]:
            if value in host_makes:
                yield Copy(value, to_host=False, how="carried")
        if graph.outputs[0] in device_makes:
            yield Copy(graph.outputs[0], to_host=True, how="carried")


def _edges(graph: ir.Graph, nodes: list[ir.Node], on_cuda: dict[ir.Node, CudaKernel]) -> Iterator[Copy]:
    """Inputs that CUDA reads alone (those that the CPU reads too have a Memcpy node), and what CUDA gives."""
    host = set(nodes) - on_cuda.keys()
    for value in graph.inputs:
        readers = [(node, on_cuda.get(node), index) for node, index in value.uses()]
        there = [node not in host and (kernel is None or i not in kernel.host) for node, kernel, i in readers]
        if there and all(there) and not _is_cache(value):
            yield Copy(value, to_host=False, how="fed")
    for value in graph.outputs:
        maker = value.producer()
        if maker in on_cuda and maker.op_type not in HOST_OUTPUTS and not _is_cache(value):
            yield Copy(value, to_host=True, how="fetched")


def _is_cache(value: ir.Value) -> bool:
    return (value.name or "").startswith(_CACHE)
