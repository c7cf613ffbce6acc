"""Reading somebody else's ``.onnx``: the graph, and the weight files that it names, checked first.

The rules for external data: known keys only; a relative path inside the folder (or, through a link, in the
blobs of the hub cache); a plain file with one link; ranges inside the file, of exactly the tensor's size, and
either equal (shared weights) or apart.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxforge.models.errors import SourceError
from onnxforge.models.files import contained, open_plain, read_plain

_GRAPH_LIMIT = 2**31 - 1
"""protobuf's own limit, in bytes."""
_KEYS = frozenset({"location", "offset", "length", "checksum", "basepath"})
_ADVICE = "Fetch or export the model again."


@dataclass(frozen=True)
class OnnxFile:
    """A parsed ``.onnx`` file whose external tensors point at files that were checked."""

    proto: onnx.ModelProto
    data_files: tuple[str, ...]
    """Weight files, relative to the folder of the graph."""

    def model(self) -> ir.Model:
        """The graph as IR, its external tensors still in their files."""
        return ir.from_proto(self.proto)


def read_onnx(path: Path) -> OnnxFile:
    """Parse a graph and check every reference to external data.

    Raises:
        SourceError: empty, not a protobuf, no graph in it, or external data that is missing, cut short,
            overlapping or outside the folder; all of it at once.
    """
    data = read_plain(path.resolve(), _GRAPH_LIMIT)
    if not data:
        raise SourceError(f"{path} is empty. {_ADVICE}")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError has no public base class across its backends
        raise SourceError(f"{path} is not an ONNX model: {error}. {_ADVICE}") from error
    if not proto.graph.node or not proto.graph.output:
        raise SourceError(f"{path} holds no graph: no nodes or no outputs. {_ADVICE}")
    problems: list[str] = []
    names = _bind_external(path.parent, proto, problems)
    if problems:
        shown = problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        raise SourceError.listing(f"{path}", shown, _ADVICE)
    return OnnxFile(proto, names)


@dataclass(frozen=True)
class _Span:
    tensor: str
    begin: int
    end: int


def _bind_external(folder: Path, proto: onnx.ModelProto, problems: list[str]) -> tuple[str, ...]:
    """Check every external tensor and point it at the real path of its file."""
    sizes: dict[str, tuple[Path, int] | None] = {}
    spans: dict[str, list[_Span]] = {}
    if any(graph.sparse_initializer for graph in _graphs(proto)):
        problems.append("it has sparse initializers, which tools read differently; make them dense")
    for tensor in _tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in sizes:
            sizes[name] = _data_file(folder, name, problems)
        span = _span(tensor, entries, problems)
        place = sizes[name]
        if place is None or span is None:
            continue
        if span.end > place[1]:
            problems.append(
                f"tensor {tensor.name!r} ends at byte {span.end:,} of {name}, which has {place[1]:,}"
            )
        spans.setdefault(name, []).append(span)
        _point_at(tensor, place[0], span)
    for name, found in spans.items():
        problems += _overlaps(name, found)
    return tuple(sorted(sizes))


def _data_file(folder: Path, name: str, problems: list[str]) -> tuple[Path, int] | None:
    try:
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise SourceError(f"external data {name!r} is not a path inside the model's folder")
        real = contained(folder, name)
        with open_plain(real) as file:
            size = file.seek(0, 2)
        if real.stat().st_nlink != 1:
            raise SourceError(
                f"{real} has several hard links, so it may be another file of this machine. Copy it."
            )
    except SourceError as error:
        problems.append(str(error))
        return None
    return real, size


def _span(tensor: onnx.TensorProto, entries: dict[str, str], problems: list[str]) -> _Span | None:
    strange = sorted(entries.keys() - _KEYS)
    if strange:
        problems.append(f"tensor {tensor.name!r} has unknown external data keys {strange}")
        return None
    needed = _bytes(tensor)
    begin, length = entries.get("offset", "0"), entries.get("length", str(needed))
    if needed is None or not begin.isdecimal() or not length.isdecimal() or int(length) != needed:
        problems.append(
            f"tensor {tensor.name!r} needs {needed} bytes and announces offset {begin}, length {length}"
        )
        return None
    return _Span(tensor.name, int(begin), int(begin) + needed)


def _bytes(tensor: onnx.TensorProto) -> int | None:
    """Size of the tensor's values; None when its dtype or its dimensions are impossible."""
    try:
        bits = ir.DataType(tensor.data_type).bitwidth
    except (ValueError, TypeError):
        return None
    elements = 1
    for dim in tensor.dims:
        if dim < 0:
            return None
        elements *= dim
    return -(-elements * bits // 8)


def _point_at(tensor: onnx.TensorProto, file: Path, span: _Span) -> None:
    del tensor.external_data[:]
    for key, value in (
        ("location", str(file)),
        ("offset", str(span.begin)),
        ("length", str(span.end - span.begin)),
    ):
        tensor.external_data.add(key=key, value=value)


def _overlaps(name: str, spans: list[_Span]) -> list[str]:
    distinct = {(span.begin, span.end): span.tensor for span in spans}
    return [
        f"tensors {distinct[before]!r} and {distinct[after]!r} share bytes of {name}"
        for before, after in pairwise(sorted(distinct))
        if before[1] > after[0]
    ]


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph nested in it."""
    pending = [proto.graph]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                pending += [attribute.g] if attribute.HasField("g") else []
                pending += attribute.graphs


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    nodes = [node for function in proto.functions for node in function.node]
    for graph in _graphs(proto):
        yield from graph.initializer
        nodes += graph.node
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
