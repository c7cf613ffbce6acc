"""Writing the graph and its weights: ``onnx/model.onnx`` and ``onnx/model.onnx_data``, tensor by tensor.

The data file's name has an underscore because transformers.js hard-codes it. Lazy weights are computed,
written and dropped on every core, in order, so the peak is a few tensors. Equal models give equal bytes.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.failpoints import failpoint

GRAPH = "onnx/model.onnx"
ALIGNMENT = 4096
"""Weights start on page borders, so that a runtime can map them."""
INLINE = 1024
"""Tensors up to this many bytes stay in the graph: ONNX Runtime's shape inference reads no external ones."""
AHEAD = 16 << 20
"""Bytes of weights that may be in memory before they are written, beyond the one that is being written."""
_BYTE = 8
_NOTHING: Mapping[str, ir.Model] = MappingProxyType({})


def weight_bytes(model: ir.Model) -> int:
    """Bytes that :func:`save_model` will write for the weights, alignment included."""
    return sum(_aligned(tensor.nbytes) for tensor in _large_tensors(model))


def save_model(
    model: ir.Model,
    folder: Path,
    *,
    derived: Mapping[str, ir.Model] = _NOTHING,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> tuple[Path, ...]:
    """Write ``model`` below ``folder`` and return the files. ``on_bytes`` hears of each tensor's bytes.

    ``derived`` are models of the same tensors, by the path each is written to, beside ``model``: they point
    into its data file, and hold no bytes of their own. All models are unchanged afterwards; weights still
    come from where they came from.

    Raises:
        ValueError: a derived model has a large tensor that ``model`` has not.
    """
    graph_path = folder / GRAPH
    graph_path.parent.mkdir(parents=True, exist_ok=True)
    data_path = graph_path.with_name(graph_path.name + "_data")
    placed = _write_weights(model, data_path, on_bytes)
    graph_path.write_bytes(_serialized(model, data_path, placed))
    for name, other in derived.items():
        if strange := [t.name for t in _large_tensors(other) if id(t) not in placed]:
            raise ValueError(f"{name}: {strange} are no weights of {GRAPH}")
        (folder / name).write_bytes(_serialized(other, data_path, placed))
    return (graph_path, data_path) if placed else (graph_path,)


def _serialized(model: ir.Model, data_path: Path, placed: Mapping[int, int]) -> bytes:
    """The bytes of ``model``'s file, its large tensors being references into ``data_path``."""
    originals = [(v, v.const_value) for g in model.graphs() for v in g.initializers.values()]
    try:
        for value, tensor in originals:
            if tensor is not None and id(tensor) in placed:
                value.const_value = _reference(tensor, value.name or "", data_path, placed[id(tensor)])
        payload: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    finally:
        for value, tensor in originals:
            value.const_value = tensor
    return payload


def _write_weights(model: ir.Model, path: Path, on_bytes: Callable[[int], None]) -> dict[int, int]:
    """Stream the large weights to ``path``; offsets by tensor identity, so tied weights are written once."""
    placed: dict[int, int] = {}
    if not any(True for _ in _large_tensors(model)):
        return placed
    with open(path, "wb") as file:
        for tensor, data in _computed(list(_large_tensors(model))):
            if data.nbytes != tensor.nbytes:
                raise ValueError(
                    f"weight {tensor.name!r}: wrote {data.nbytes} bytes, declared {tensor.nbytes}"
                )
            file.seek(_aligned(file.tell()))
            placed[id(tensor)] = file.tell()
            file.write(data)
            on_bytes(data.nbytes)
            failpoint("in-weights")
        file.flush()
        os.fsync(file.fileno())
    return placed


def _computed(tensors: Sequence[ir.TensorProtocol]) -> Iterator[tuple[ir.TensorProtocol, memoryview]]:
    """The little-endian bytes of each tensor, in order. Up to a core's worth of tensors is computed ahead,
    as long as they fit into :data:`AHEAD` bytes together; a larger one is computed alone."""
    waiting = deque(tensors)
    ahead: deque[tuple[ir.TensorProtocol, Future[memoryview]]] = deque()
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        while waiting or ahead:
            while waiting and len(ahead) <= _cores():
                size = sum(tensor.nbytes for tensor, _ in ahead) + waiting[0].nbytes
                if ahead and size > AHEAD:
                    break
                tensor = waiting.popleft()
                ahead.append((tensor, pool.submit(_bytes, tensor)))
            tensor, data = ahead.popleft()
            yield tensor, data.result()


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """Without a copy where the array in memory is what goes to disk."""
    array = tensor.numpy()
    packed = tensor.dtype.bitwidth < _BYTE or sys.byteorder == "big" or not array.flags.c_contiguous
    return memoryview(tensor.tobytes()) if packed else array.reshape(-1).view(np.uint8).data


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _large_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    seen: set[int] = set()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= INLINE or tensor.dtype is ir.DataType.STRING:
                continue
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def _reference(tensor: ir.TensorProtocol, name: str, path: Path, offset: int) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        path.name,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=name,
        base_dir=path.parent,
    )


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
