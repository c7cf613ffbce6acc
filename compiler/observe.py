"""Watching passes from outside: what each did to the graph, and a reproducer when one fails.

Watching never chooses another path: the same pass objects run on the same model, watched or not.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.compiler.errors import PassFailed
from onnxforge.compiler.reproducer import write_reproducer
from onnxforge.passes import notes
from onnxforge.passes.base import DerivingPass, GraphPass, GraphStep, PassRefused

PRUNES = "prune-"
"""Passes of this name remove weights; others only write them differently."""


@dataclass(frozen=True)
class GraphStats:
    """The size of a graph at one moment."""

    nodes: int
    weight_bytes: int
    ops: Mapping[str, int]
    """Number of nodes by operator; contrib operators carry their domain (``com.microsoft.MatMulNBits``)."""
    elements: int = 0
    """Of all distinct weights."""


@dataclass(frozen=True)
class PassRecord:
    """One pass of one compile, as it was seen from outside."""

    text: str
    seconds: float
    modified: bool
    before: GraphStats
    after: GraphStats
    matches: tuple[notes.Note, ...]
    near_misses: tuple[notes.Note, ...]
    measures: tuple[notes.Note, ...] = ()


@dataclass(frozen=True)
class Ledger:
    """Every pass of one compile, in the order in which they ran."""

    records: tuple[PassRecord, ...] = ()
    draft: "Ledger | None" = None
    """Of the draft model that comes with the artifact, where one does."""

    def near_misses(self, pass_name: str | None = None) -> tuple[notes.Note, ...]:
        """Places that were left alone, of one pass or of all."""
        mine = (r for r in self.records if pass_name is None or r.text.split("{")[0] == pass_name)
        return tuple(note for record in mine for note in record.near_misses)

    @property
    def pruned(self) -> int:
        """Elements of weights that pruning removed."""
        cuts = [record for record in self.records if record.text.startswith(PRUNES)]
        return sum(record.before.elements - record.after.elements for record in cuts)

    def measures(self, what: str) -> tuple[notes.Note, ...]:
        """What was measured to decide about ``what``, by the last pass that did so; empty where none did."""
        found = (tuple(n for n in record.measures if n.what == what) for record in reversed(self.records))
        return next((measures for measures in found if measures), ())


def graph_stats(model: ir.Model) -> GraphStats:
    """Count nodes, operators and distinct weights (bytes, elements), subgraphs and functions included."""
    ops: Counter[str] = Counter()
    tensors: dict[int, ir.TensorProtocol] = {}
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := value.const_value) is not None:
                tensors[id(tensor)] = tensor
        ops.update(_op_name(node) for node in graph)
    for function in model.functions.values():
        ops.update(_op_name(node) for node in function.all_nodes())
    return GraphStats(
        nodes=sum(ops.values()),
        weight_bytes=sum(tensor.nbytes for tensor in tensors.values()),
        ops=dict(sorted(ops.items())),
        elements=sum(tensor.size for tensor in tensors.values()),
    )


def run_passes(
    model: ir.Model,
    passes: Sequence[GraphPass],
    *,
    on_done: Callable[[PassRecord], None] = lambda _: None,
) -> Ledger:
    """Run ``passes`` on ``model`` in place and write down what each did.

    Raises:
        PassRefused: a pass refused the graph; its own message.
        PassFailed: a pass crashed; the message names the folder with the graph before it.
    """
    records: list[PassRecord] = []
    before = graph_stats(model)
    for index, graph_pass in enumerate(passes):
        snapshot = model.clone()  # structure only: tensors are shared, so this costs milliseconds
        record, _ = _watch(model, graph_pass, before, snapshot, passes[index:])
        records.append(record)
        on_done(record)
        before = record.after
    return Ledger(tuple(records))


def run_derivations(model: ir.Model, passes: Sequence[DerivingPass]) -> tuple[Ledger, dict[str, ir.Model]]:
    """The models that ``passes`` derive of the finished ``model``, by the path each is to be written to.

    Raises:
        PassRefused, PassFailed: as :func:`run_passes`.
    """
    records: list[PassRecord] = []
    derived: dict[str, ir.Model] = {}
    before = graph_stats(model)
    for derivation in passes:
        record, derived[derivation.file] = _watch(model, derivation, before, model.clone(), [derivation])
        records.append(record)
    return Ledger(tuple(records)), derived


def _watch(
    model: ir.Model,
    graph_pass: GraphStep,
    before: GraphStats,
    snapshot: ir.Model,
    rest: Sequence[GraphStep],
) -> tuple[PassRecord, ir.Model]:
    started = time.perf_counter()
    with notes.listen() as seen:
        try:
            result = graph_pass(model)
        except Exception as error:
            if (refused := _cause(error, PassRefused)) is not None:
                raise refused from error
            folder = write_reproducer(snapshot, [p.text() for p in rest], error)
            raise PassFailed(
                f"The pass `{graph_pass.text()}` crashed: {type(error).__name__}: {error}. "
                f"The graph before it, the remaining passes and the traceback are in {folder}. "
                f"Attach that folder to a bug report, or compile with `--without {graph_pass.pass_name()}`."
            ) from error
    record = PassRecord(
        text=graph_pass.text(),
        seconds=time.perf_counter() - started,
        modified=result.modified,
        before=before,
        after=graph_stats(result.model),
        matches=tuple(n for n in seen if n.kind is notes.NoteKind.MATCH),
        near_misses=tuple(n for n in seen if n.kind is notes.NoteKind.NEAR_MISS),
        measures=tuple(n for n in seen if n.kind is notes.NoteKind.MEASURED),
    )
    return record, result.model


def _cause(error: BaseException, kind: type[PassRefused]) -> PassRefused | None:
    """The refusal inside ``error``: the pass infrastructure wraps what a pass raises."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, kind):
            return current
        current = current.__cause__
    return None


def _op_name(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type
