"""``inspect PATH``, ``inspect --diff A B``, ``inspect --prunable MODEL``: what a graph is made of."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxforge.compiler.options import AsJson, Debug

if TYPE_CHECKING:
    import onnx_ir as ir

_ONNX = "ai.onnx"
_Path = Annotated[
    Path | None,
    typer.Argument(metavar="PATH", help="An artifact's folder or an .onnx file.", show_default=False),
]
_Diff = Annotated[
    tuple[Path, Path] | None, typer.Option("--diff", metavar="A B", help="Compare two, A before and B after.")
]


@dataclasses.dataclass(frozen=True)
class Anatomy:
    """One graph, counted."""

    path: str
    graph_bytes: int
    weight_bytes: int
    nodes: int
    opsets: Mapping[str, int]
    ops: Mapping[str, int]
    fused: Mapping[str, int]
    """Operators outside ONNX's own domain: what fusion and quantization made."""
    weights: Mapping[str, tuple[int, int]]
    """By element type: number of tensors and their bytes."""
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_Prunable = Annotated[
    str | None,
    typer.Option(
        "--prunable",
        metavar="MODEL",
        help="Show what can be removed of a model (anything that compile takes) or an artifact, and what "
        "shrinks with it.",
    ),
]


def inspect(
    path: _Path = None,
    diff: _Diff = None,
    prunable: _Prunable = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show a graph's operators, weights by type, sizes and what was fused; or the difference between two."""
    if [path, diff, prunable].count(None) != 2:
        raise typer.BadParameter("give one PATH, --diff A B, or --prunable MODEL")
    if prunable is not None:
        _show_prunable(prunable, as_json)
    elif path is not None:
        anatomy = dissect(path)
        print(json.dumps(dataclasses.asdict(anatomy), indent=2) if as_json else _page(anatomy))
    elif diff is not None:
        before, after = map(dissect, diff)
        print(json.dumps(_changes(before, after), indent=2) if as_json else _diff_page(before, after))


def _show_prunable(ref: str, as_json: bool) -> None:
    from onnxforge.compiler.prunable import page, prunable

    facts = prunable(ref)
    print(json.dumps(dataclasses.asdict(facts), indent=2) if as_json else page(facts))


def dissect(path: Path) -> Anatomy:
    """Count the graph at ``path`` without reading its weights.

    Raises:
        RequestRefused: nothing there is an ONNX graph, or its weight files are missing or too short.
    """
    import onnx_ir as ir

    from onnxforge.compiler.errors import RequestRefused
    from onnxforge.compiler.observe import graph_stats
    from onnxforge.compiler.save import GRAPH

    file = path / GRAPH if path.is_dir() else path
    if not file.is_file():
        raise RequestRefused(f"There is no graph at {file}: give an artifact's folder or an .onnx file.")
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf and onnx raise many kinds, and all of them mean this
        raise RequestRefused(f"{file} is no readable ONNX graph: {error}") from error
    _require_weights(model, file)
    stats = graph_stats(model)
    weights: dict[str, tuple[int, int]] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := value.const_value) is not None:
                count, size = weights.get(tensor.dtype.name, (0, 0))
                weights[tensor.dtype.name] = (count + 1, size + tensor.nbytes)
    return Anatomy(
        path=str(path),
        graph_bytes=file.stat().st_size,
        weight_bytes=stats.weight_bytes,
        nodes=stats.nodes,
        opsets=dict(model.opset_imports),
        ops=stats.ops,
        fused={name: count for name, count in stats.ops.items() if "." in name},
        weights=weights,
        inputs=tuple(_signature(v) for v in model.graph.inputs),
        outputs=tuple(_signature(v) for v in model.graph.outputs),
    )


def _require_weights(model: "ir.Model", file: Path) -> None:
    import onnx_ir as ir

    from onnxforge.compiler.errors import RequestRefused

    ends: dict[Path, int] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(tensor := value.const_value, ir.ExternalTensor):
                end = (tensor.offset or 0) + (tensor.length or tensor.nbytes)
                ends[Path(tensor.path)] = max(end, ends.get(Path(tensor.path), 0))
    sizes = {path: path.stat().st_size if path.is_file() else None for path in ends}
    problems = [
        f"{path}: {'missing' if size is None else f'{size} bytes'}, {ends[path]} expected at least"
        for path, size in sorted(sizes.items())
        if size is None or size < ends[path]
    ]
    if problems:
        raise RequestRefused(f"{file} lacks weights: {'; '.join(problems)}. Compile or fetch it again.")


def _signature(value: "ir.Value") -> str:
    shape = ", ".join(str(d) for d in value.shape) if value.shape is not None else "?"
    return f"{value.name}: {value.dtype.name.lower() if value.dtype else '?'} [{shape}]"


def _page(anatomy: Anatomy) -> str:
    shown = [
        f"{anatomy.path}",
        f"  {anatomy.nodes} nodes, graph {anatomy.graph_bytes / 1e6:.2f} MB, "
        f"weights {anatomy.weight_bytes / 1e6:.2f} MB, "
        f"opsets {', '.join(f'{domain or _ONNX} {version}' for domain, version in anatomy.opsets.items())}",
        "  weights",
        *(
            f"    {name:<10} {count:>6} tensors {size / 1e6:>12.2f} MB"
            for name, (count, size) in _by_size(anatomy)
        ),
        "  operators",
        *(
            f"    {count:>6}  {name}"
            for name, count in sorted(anatomy.ops.items(), key=lambda kv: (-kv[1], kv[0]))
        ),
        "  fused and quantized",
        *(f"    {count:>6}  {name}" for name, count in anatomy.fused.items()),
        "  inputs",
        *(f"    {text}" for text in _shorten(anatomy.inputs)),
        "  outputs",
        *(f"    {text}" for text in _shorten(anatomy.outputs)),
    ]
    return "\n".join(shown)


def _by_size(anatomy: Anatomy) -> list[tuple[str, tuple[int, int]]]:
    return sorted(anatomy.weights.items(), key=lambda item: -item[1][1])


def _shorten(texts: tuple[str, ...], limit: int = 8) -> tuple[str, ...]:
    """Thirty layers of cache say no more than the first and the last."""
    return (
        texts
        if len(texts) <= limit
        else (*texts[: limit - 2], f"... {len(texts) - limit + 1} more", texts[-1])
    )


def _changes(before: Anatomy, after: Anatomy) -> dict[str, object]:
    names = sorted({*before.ops, *after.ops})
    return {
        "before": before.path,
        "after": after.path,
        "nodes": [before.nodes, after.nodes],
        "weight_bytes": [before.weight_bytes, after.weight_bytes],
        "ops": {
            name: [before.ops.get(name, 0), after.ops.get(name, 0)]
            for name in names
            if before.ops.get(name, 0) != after.ops.get(name, 0)
        },
    }


def _diff_page(before: Anatomy, after: Anatomy) -> str:
    names = sorted({*before.ops, *after.ops})
    rows = [(name, before.ops.get(name, 0), after.ops.get(name, 0)) for name in names]
    return "\n".join(
        [
            f"{before.path} -> {after.path}",
            f"  nodes    {before.nodes} -> {after.nodes}",
            f"  weights  {before.weight_bytes / 1e6:.2f} -> {after.weight_bytes / 1e6:.2f} MB",
            *(f"  {old:>6} -> {new:<6} {name}" for name, old, new in rows if old != new),
        ]
    )
