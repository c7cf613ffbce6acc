"""Every compile ends here: the artifact is measured against its source, and the numbers are written down.

Quality is held against the source's own graph (exported, no pass applied) in the same ONNX Runtime. Speed is
held against the baseline target's artifact of the same model, built by the same pipeline; the baseline
target's own artifact is held against the export.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler.calibration_data import uses_of
from onnxforge.compiler.calibration_notes import calibration_notes
from onnxforge.compiler.evidence import Evidence, Verdict
from onnxforge.compiler.observe import Ledger, graph_stats
from onnxforge.compiler.placement_report import check_placement, report_placement
from onnxforge.compiler.placement_seen import check_seen_placement
from onnxforge.compiler.proof_cuda_graph import cuda_graph
from onnxforge.compiler.proof_quality import quality
from onnxforge.compiler.proof_speculation import as_default, complaint, speculation
from onnxforge.compiler.proof_speed import speed
from onnxforge.compiler.proof_summary import summarize
from onnxforge.compiler.proof_types import EXPORT, METRICS, Proof, ProofOptions
from onnxforge.compiler.provider_here import stand_in
from onnxforge.compiler.quantizer_report import report_quantizers
from onnxforge.compiler.report import write_report
from onnxforge.compiler.structure import check_structure
from onnxforge.compiler.structure_check import StructureCheck, broken_promises
from onnxforge.compiler.targets import CPU, BudgetLine
from onnxforge.compiler.traffic import traffic_of
from onnxforge.compiler.worst_layers import worst_layers
from onnxforge.models.source import Source
from onnxforge.runtimes.artifact import Manifest, read_manifest


class References:
    """What the artifact is held against: folders that are built when first asked for, and once."""

    def __init__(self, options: ProofOptions, temp: Path) -> None:
        self._options = options
        self._temp = temp
        self._built: dict[str, Path] = {}

    def folder(self, name: str) -> Path:
        """The artifact of the target called ``name``, or of the bare export."""
        if name not in self._built:
            self._built[name] = self._temp / name
            self._options.build_reference(name, self._built[name])
        return self._built[name]


def prove(
    staging: Path, source: Source, model: ir.Model | None, options: ProofOptions, ledger: Ledger
) -> Proof:
    """Measure the loadable artifact in ``staging``, write ``report/`` into it, and judge it by its budget.

    ``model`` is the finished graph if the caller still has it (else it is read from the folder).

    Raises:
        EvaluationError: text, tokenizer and graph do not fit together.
        MeasurementFailed: a measuring process died.
    """
    manifest = read_manifest(staging)
    with tempfile.TemporaryDirectory(prefix="onnxforge-proof-") as temp:
        references = References(options, Path(temp))
        export = references.folder(EXPORT)
        evidence = _outset(staging, export, manifest, source, model, options, ledger)
        evidence = quality(evidence, staging, export, source, options)
        if options.speed and evidence.is_verified:
            evidence = cuda_graph(evidence, staging, options)
            yardstick = EXPORT if options.target == options.baseline else options.baseline
            evidence = speed(evidence, staging, references.folder(yardstick), options)
            evidence = speculation(evidence, staging, options.speculation)
    evidence = replace(evidence, summary=summarize(evidence))
    verdicts, notes = judge(evidence, options.budget)
    notes = (*_standing(evidence), *calibration_notes(model, source, options.text), *notes)
    evidence = replace(evidence, verdicts=verdicts, notes=(*evidence.notes, *notes))
    write_report(evidence, staging)
    missed = [f"promised {v.line}, measured {v.measured:.6g}" for v in verdicts if not v.held]
    missed += broken_promises(evidence.structure)
    if evidence.quantizers is not None and evidence.quantizers.complaint:
        missed.append(evidence.quantizers.complaint)
    if broken_promise := complaint(evidence.speculation):
        missed.append(broken_promise)
    return Proof(
        summary=evidence.summary,
        missed=tuple(missed),
        speculation=as_default(evidence.speculation, manifest.speculation),
        provider_options=evidence.cuda_graph.options if evidence.cuda_graph is not None else {},
        worst=worst_layers(evidence) if missed else "",
    )


def _standing(evidence: Evidence) -> tuple[str, ...]:
    """What a reader must know before any number, where the artifact's provider is not here."""
    if evidence.is_verified:
        return ()
    return (
        f"**Not verified on {evidence.provider}**: this machine does not have it. Quality was measured on "
        f"{evidence.verified_on}, where ONNX Runtime computes in float32 what it has no float16 kernel for; "
        f"speed and memory were not measured. What the graph's form promises is under Structure.",
    )


def judge(evidence: Evidence, budget: Sequence[BudgetLine]) -> tuple[tuple[Verdict, ...], tuple[str, ...]]:
    """A verdict for every line that this kind of model can answer, and a note for every line it cannot."""
    verdicts, notes = [], []
    for line in budget:
        measured = evidence.summary.get(line.metric)
        if isinstance(measured, int | float) and not isinstance(measured, bool):
            verdicts.append(Verdict(line.text(), float(measured), line.holds(float(measured))))
        elif line.metric not in METRICS:
            verdicts.append(Verdict(f"{line.text()} (no such metric)", math.nan, held=False))
        elif line.metric.endswith("_speed_ratio") and not evidence.is_verified:
            notes.append(f"The budget line {line.text()} is **not proven**: it needs {evidence.provider}.")
        else:
            notes.append(f"The budget line {line.text()} does not apply here: it was not measured.")
    return tuple(verdicts), tuple(notes)


def _outset(
    staging: Path,
    export: Path,
    manifest: Manifest,
    source: Source,
    model: ir.Model | None,
    options: ProofOptions,
    ledger: Ledger,
) -> Evidence:
    """What is known before anything runs: sizes, operators, traffic."""
    ours, theirs = staging / manifest.graph, export / read_manifest(export).graph
    baseline = "the unfused fp32 export" if options.target == options.baseline else f"`{options.baseline}`"
    before = traffic_of(theirs)
    model = ir.load(ours) if model is None else model
    placement = report_placement(staging, manifest)
    return Evidence(
        model=source.ref,
        task=manifest.task,
        target=options.target,
        target_summary=options.summary,
        provider=manifest.provider,
        verified_on=stand_in(manifest.provider),
        command=options.command,
        seed=options.seed,
        reference="the unfused fp32 export of the same weights, in plain ONNX Runtime",
        baseline=f"{baseline} of the same model",
        protocol="",
        parameters=(sum(weight.size for weight in source.weights.values()) or before.parameters)
        - ledger.pruned,
        traffic=traffic_of(ours),
        reference_traffic=before,
        size=_bytes(ours),
        reference_size=_bytes(theirs),
        ops_before=graph_stats(ir.load(theirs)).ops,
        ops_after=graph_stats(model).ops,
        ledger=ledger,
        calibration=uses_of(model),
        structure=(
            *check_structure(model, manifest.provider),
            *check_placement(placement),
            *_seen(staging, manifest),
        ),
        placement=placement,
        quantizers=report_quantizers(model, ours, manifest, stand_in(manifest.provider)),
    )


def _seen(staging: Path, manifest: Manifest) -> tuple[StructureCheck, ...]:
    """What loading on the GPU shows of where nodes run; nothing where there is none."""
    if stand_in(manifest.provider) == CPU:
        return ()
    return (check_seen_placement(staging, manifest),)


def _bytes(graph: Path) -> int:
    """Graph and its weights: everything the graph's folder holds under the graph's name."""
    return sum(f.stat().st_size for f in graph.parent.iterdir() if f.name.startswith(graph.stem))
