"""From an exported graph to a loadable folder: passes, expectations, weights, sidecars, manifest."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler import pipeline, publish
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.expectations import check_expectations, check_kind
from onnxforge.compiler.failpoints import failpoint
from onnxforge.compiler.graph_facts import graph_facts, graph_kind
from onnxforge.compiler.manifest import manifest_for
from onnxforge.compiler.observe import Ledger, PassRecord, graph_stats, run_derivations, run_passes
from onnxforge.compiler.progress import Progress, Silent, describe
from onnxforge.compiler.pruned_config import pruned_config, pruned_parts
from onnxforge.compiler.save import save_model, weight_bytes
from onnxforge.compiler.served_source import served_source
from onnxforge.compiler.sidecars import sidecars
from onnxforge.compiler.speculation_option import undecided
from onnxforge.compiler.step_progress import heard_by
from onnxforge.compiler.targets import Target
from onnxforge.compiler.text_io_option import attach_text, check_answers
from onnxforge.compiler.tokenizer_agreement import check_agreement
from onnxforge.models.source import Source
from onnxforge.passes.base import DerivingPass, GraphPass
from onnxforge.runtimes.artifact import Manifest, write_manifest

_GRAPH_ROOM = 16 << 20
"""Room on the disk for the graph, the sidecars and the report: a guess on the large side, in bytes."""


@dataclass(frozen=True)
class Built:
    """A folder that loads."""

    model: ir.Model
    ledger: Ledger
    manifest: Manifest


def build(
    source: Source,
    exported: ir.Model,
    target: Target,
    task: str,
    folder: Path,
    *,
    name: str,
    progress: Progress | None = None,
) -> Built:
    """Run ``target``'s passes on a copy of ``exported`` and write an unproven artifact into ``folder``."""
    watch = progress or Silent()
    check_kind(target, graph_kind(exported))
    model = exported.clone()
    attach(model, source, target.calibration)
    check_answers(target, source, model)
    before = graph_stats(model).weight_bytes
    ledger = _run(model, target, before, watch)
    served = served_source(source, model)
    check_agreement(source, served, model)
    served = replace(served, config=pruned_config(served.config, model))
    attach_text(model, served, target)
    facts = graph_facts(model)
    check_expectations(target, facts.kind, ledger)
    derivations, derived = _derive(model, target, facts.kind, watch)
    failpoint("after-passes")

    context_length = int(model.metadata_props["onnxforge.context_length"])
    for graph in (model, *derived.values()):  # equal models give equal bytes, wherever they lie
        graph.metadata_props.pop("onnxforge.source", None)
    size = weight_bytes(model)
    publish.require_space(folder, size + _GRAPH_ROOM + sum(map(len, served.sidecars.values())))
    watch.begin("write weights")
    share = before / size if size else 0.0  # quantized bytes count as what they were made from
    written = save_model(
        model, folder, derived=derived, on_bytes=lambda count: watch.advance(round(count * share))
    )
    watch.end(f"{sum(path.stat().st_size for path in written) / 1e6:.1f} MB")
    failpoint("after-weights")

    files = sidecars(
        served, facts, target, task=task, context_length=context_length, external_data=len(written) > 1
    )
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    failpoint("before-manifest")
    manifest = manifest_for(
        folder, source=served, facts=facts, target=target, task=task, context_length=context_length, name=name
    )
    summary = {**manifest.summary, **pruned_parts(model)}
    manifest = replace(manifest, summary=summary, speculation=undecided(target))
    write_manifest(folder, manifest)
    failpoint("after-manifest")
    return Built(model, Ledger((*ledger.records, *derivations.records)), manifest)


def _run(model: ir.Model, target: Target, size: int, watch: Progress) -> Ledger:
    passes = [step for step in pipeline.parse(target.passes) if isinstance(step, GraphPass)]
    names = iter([*(p.pass_name() for p in passes), ""])
    watch.begin(next(names))

    def done(record: PassRecord) -> None:
        watch.advance(size)
        watch.end(describe(record))
        if following := next(names):
            watch.begin(following)

    with heard_by(watch.during):
        return run_passes(model, passes, on_done=done)


def _derive(
    model: ir.Model, target: Target, kind: str, watch: Progress
) -> tuple[Ledger, dict[str, ir.Model]]:
    """Second models of the finished one. They generate, so an encoder has none."""
    passes = [step for step in pipeline.parse(target.passes) if isinstance(step, DerivingPass)]
    if kind != "decoder" or not passes:
        return Ledger(), {}
    watch.begin(", ".join(step.pass_name() for step in passes))
    ledger, derived = run_derivations(model, passes)
    watch.end(", ".join(describe(record) for record in ledger.records))
    return ledger, derived


def normalised(target: Target) -> Target:
    """``target`` with its passes spelled the one canonical way, as the manifest records them."""
    return replace(target, passes=tuple(p.text() for p in pipeline.parse(target.passes)))
