"""What would leave the CUDA provider, in words and numbers, for an artifact's report and its budget."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxforge.compiler.crossing import CONTEXT, ROWS, TEXT, TOKEN, CopyFact, copy_fact, crossing_lines
from onnxforge.compiler.cuda_limits import Outcome, broken_limits
from onnxforge.compiler.loop_check import has_loop
from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.placement import PlacedGraph, place
from onnxforge.compiler.structure_check import FLOATS, HALVES, StructureCheck, listed, operator_name
from onnxforge.compiler.targets import CUDA
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes.artifact import Manifest

_HOT = ("Attention", "Conv", "Gelu", "Gemm", "MatMul", "MatMulNBits", "Normalization", "Softmax", "Embed")
_ACTIVATION_RANK = 3
_TOLD = 12
_REFUSED = (Outcome.OPEN, Outcome.RUN)
_CUDNN = 'pip install "onnxruntime-gpu[cuda,cudnn]"'
_LOOP, _FEW_BYTES = "Loop.body", 1 << 16
_INTEGERS = (ir.DataType.INT8, ir.DataType.UINT8)


@dataclass(frozen=True)
class LimitFact:
    """One node beyond what its CUDA kernel takes."""

    node: str
    limit: str
    outcome: Outcome
    found: str
    advice: str


@dataclass(frozen=True)
class PlacementPart:
    """One graph of one file: its outermost, or what a Loop or an If holds."""

    file: str
    graph: str
    on_cuda: int
    on_cpu: int
    lacking: tuple[str, ...]
    """Nodes on the CPU because CUDA has no kernel for them: operator and name."""
    hot: tuple[str, ...]
    """Those on the CPU that work on activations, weights or the cache, whatever the reason."""
    copies: tuple[CopyFact, ...]
    edges: tuple[CopyFact, ...] = ()
    """What the caller feeds and fetches in each run, of a file's outermost graph."""
    limits: tuple[LimitFact, ...] = ()
    each: str = "text"
    """What one run of the file's outermost graph is for: a ``token``, or a ``text``."""


def report_placement(folder: Path, manifest: Manifest) -> tuple[PlacementPart, ...]:
    """Every graph of the artifact in ``folder``, as CUDA would be given it; nothing for other providers."""
    if manifest.provider != CUDA:
        return ()
    files = [manifest.graph, *([AddSpeculativeLoop.file] if has_loop(folder) else [])]
    return tuple(part for file in files for part in placement_parts(load_typed(folder / file), file))


def load_typed(path: Path) -> ir.Model:
    """The model without its weights' bytes, with all types and shapes that follow from its inputs'."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False)))


def placement_parts(model: ir.Model, file: str) -> Iterator[PlacementPart]:
    """The same of one model, whose values have their types."""
    generates = any((value.name or "").startswith("past_key_values.") for value in model.graph.inputs)
    sizes, each = (TOKEN, "token") if generates else (TEXT, "text")
    for placed in place(model):
        yield PlacementPart(
            file=file,
            graph=placed.path,
            on_cuda=len(placed.provider),
            on_cpu=len(placed.host),
            lacking=tuple(_named(node) for node in placed.unsupported),
            hot=tuple(_named(node) for node in placed.host if is_hot(node)),
            copies=tuple(copy_fact(copy, sizes) for copy in placed.copies),
            edges=tuple(copy_fact(copy, sizes) for copy in placed.edges),
            limits=tuple(_beyond(placed)),
            each=each,
        )


def check_placement(parts: Sequence[PlacementPart]) -> tuple[StructureCheck, ...]:
    """Required: what computes stays on the GPU, and its kernels take it. The others are told."""
    if not parts:
        return ()
    hot = Counter(
        f"{name} in {part.file} {part.graph} ({_why(part, name)})" for part in parts for name in part.hot
    )
    looping = {part.file for part in parts if _LOOP in part.graph}
    steps = [part for part in parts if part.file not in looping or _LOOP in part.graph]
    large = Counter(
        f"{copy.value} {copy.way} in {part.file} {part.graph} ({copy.bytes:,} bytes)"
        for part in steps
        for copy in part.copies
        if copy.bytes > _FEW_BYTES
    )
    refused = Counter(
        f"{limit.node}: {limit.found} ({limit.outcome.words}; {limit.advice})"
        for limit in _limits(parts, *_REFUSED)
    )
    needing = Counter(limit.node.split(" ", 1)[0] for limit in _limits(parts, Outcome.CUDNN))
    counts = "; ".join(f"{len(part.copies)} in {part.file} {part.graph}" for part in steps if part.copies)
    return (
        StructureCheck(
            rule="what works on activations, weights or the cache stays on CUDA",
            found=listed(hot) or f"all of {sum(part.on_cuda for part in parts)} nodes there",
            held=not hot,
            required=True,
        ),
        StructureCheck(
            rule="every node is within the limits of its CUDA kernel",
            found=listed(refused) or f"all of {sum(part.on_cuda for part in parts)} nodes there",
            held=not refused,
            required=True,
        ),
        StructureCheck(
            rule="nothing needs cuDNN, which onnxruntime-gpu alone does not bring",
            found=f"{listed(needing)}: {_CUDNN}" if needing else "nothing does",
            held=not needing,
            required=False,
        ),
        StructureCheck(
            rule=f"no copy between CPU and CUDA in a step is over {_FEW_BYTES:,} bytes",
            found=listed(large) or counts or "nothing is copied",
            held=not large,
            required=False,
        ),
    )


def placement_section(parts: Sequence[PlacementPart]) -> str:
    """The section of the report; nothing where there is nothing to tell."""
    if not parts:
        return ""
    head = (
        "## Placement\n\nWhere ONNX Runtime would run each node, predicted from CUDA's kernels and its own "
        f"rules; bytes for one text, {CONTEXT:,} tokens of context and {ROWS} rows of anything else. What "
        "`main` copies it copies once a run, what a Loop's body does in each step, what a branch does where "
        "that is taken.\n\n"
    )
    rows = [
        (f"`{p.file}` {p.graph}", f"{p.on_cuda}", f"{p.on_cpu}", f"{len(p.copies)}", _number(p.copies))
        for p in parts
    ]
    lines = table(("graph", "on CUDA", "on the CPU", "copies", "bytes"), rows, right=(1, 2, 3, 4))
    told = [*crossing_lines(parts), *(line for part in parts for line in _details(part))]
    return head + lines + ("\n" + "\n".join(told) + "\n" if told else "")


def _details(part: PlacementPart) -> Iterator[str]:
    where = f"`{part.file}` {part.graph}"
    if part.hot:
        yield f"- {where}: **off CUDA**: {listed(Counter(part.hot))}"
    if part.lacking:
        kinds = Counter(name.split(" ", 1)[0] for name in part.lacking)
        yield f"- {where}: no CUDA kernel for {', '.join(f'{kind} ({n}x)' for kind, n in kinds.items())}"
    for limit in part.limits:
        if limit.outcome in _REFUSED:
            yield f"- {where}: **beyond its kernel**: {limit.node}: {limit.found}; {limit.outcome.words}"
    for copy in part.copies[:_TOLD]:
        yield f"- {where}: `{copy.value}` {copy.way}, {copy.bytes:,} bytes ({copy.how})"
    if len(part.copies) > _TOLD:
        yield f"- {where}: {len(part.copies) - _TOLD} more"


def _why(part: PlacementPart, name: str) -> str:
    """Why a node is on the CPU, and what to do."""
    for limit in part.limits:
        if limit.node == name and limit.outcome is Outcome.CPU:
            return f"{limit.found}: {limit.outcome.words}; {limit.advice}"
    if name in part.lacking:
        return f"no kernel: {Outcome.CPU.words}; take the operator out of the model, or leave out its pass"
    return "CUDA leaves it to the CPU, whose small numbers are all that it reads"


def _limits(parts: Sequence[PlacementPart], *outcomes: Outcome) -> Iterator[LimitFact]:
    return (limit for part in parts for limit in part.limits if limit.outcome in outcomes)


def _beyond(placed: PlacedGraph) -> Iterator[LimitFact]:
    """What kernels of a graph's nodes do not take; what CUDA gives away is among ``unsupported``."""
    for node in (*placed.provider, *placed.unsupported):
        for broken in broken_limits(node):
            limit = broken.limit
            yield LimitFact(_named(node), limit.name, limit.outcome, broken.found, limit.advice)


def _number(copies: Sequence[CopyFact]) -> str:
    return f"{sum(copy.bytes for copy in copies):,}"


def _named(node: ir.Node) -> str:
    return f"{operator_name(node)} {node.name}"


def is_hot(node: ir.Node) -> bool:
    """An operator of that kind, or anything on float16, or on floats or bytes of an activation's rank."""
    if any(word in node.op_type for word in _HOT):
        return True
    values = [
        value for value in (*node.inputs, *node.outputs) if value is not None and not _is_weightless(value)
    ]
    return any(
        value.dtype in HALVES
        or (
            value.dtype in (*FLOATS, *_INTEGERS)
            and value.shape is not None
            and len(value.shape) >= _ACTIVATION_RANK
        )
        for value in values
    )


def _is_weightless(value: ir.Value) -> bool:
    """A constant of one element: no activation."""
    return value.const_value is not None and value.const_value.size <= 1
