"""One compile, from a model's name to a published artifact. Nothing flows back."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler import publish
from onnxforge.compiler.build import Built, build, normalised
from onnxforge.compiler.calibration_check import check_calibration
from onnxforge.compiler.calibration_data import uses_of
from onnxforge.compiler.calibration_use import use_summary
from onnxforge.compiler.draft_model import DRAFT_FOLDER, draft_target
from onnxforge.compiler.errors import BudgetMissed
from onnxforge.compiler.failpoints import failpoint
from onnxforge.compiler.manifest import with_new_files
from onnxforge.compiler.observe import Ledger, graph_stats
from onnxforge.compiler.placement_report import check_placement, report_placement
from onnxforge.compiler.progress import Progress, Silent, Within
from onnxforge.compiler.proof_types import EXPORT, Proof, ProofOptions
from onnxforge.compiler.provider_here import stand_in
from onnxforge.compiler.recipe import Recipe, to_json
from onnxforge.compiler.request import CompileRequest, CompileResult
from onnxforge.compiler.selfcheck import self_check
from onnxforge.compiler.served_source import check_cut
from onnxforge.compiler.speculation_option import check_artifact, unmeasured
from onnxforge.compiler.structure_check import broken_promises
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.compiler.text_io_option import check_text_io
from onnxforge.compiler.tokenizer_check import check_tokenizer
from onnxforge.models.source import Source
from onnxforge.runtimes.artifact import Manifest, write_manifest

Prove = Callable[[Path, Source, ir.Model | None, ProofOptions, Ledger], Proof]


@dataclass(frozen=True)
class Parts:
    """The parts of the house that a compile calls on, so that a test can put a stand-in for each."""

    open_model: Callable[[str, str | None], Source]
    export_model: Callable[[Source, str | None], ir.Model]
    self_check: Callable[[Path], None]
    prove: Prove


def compile_model(
    request: CompileRequest, *, parts: Parts | None = None, progress: Progress | None = None
) -> CompileResult:
    """Compile ``request.model`` and publish the artifact at ``request.output``, whole or not at all.

    Raises:
        SourceError, UnsupportedModel: the model cannot be read or exported.
        PassRefused, PassFailed, ExpectationMissed: a rewrite did not do what the target asks of it.
        PublishRefused: the artifact cannot be written there.
        SelfCheckFailed, BudgetMissed: it was written, checked, found wanting, and not published.
    """
    parts, watch, started = parts or house(), progress or Silent(), time.perf_counter()
    target = normalised(request.target)
    with publish.staging(request.output) as folder:
        draft = normalised(draft_target(target)) if target.draft is not None else None
        passes = len(target.passes) + (len(draft.passes) + 1 if draft is not None else 0)
        source, task, exported = _export(request, parts, watch, passes)
        built = build(source, exported, target, task, folder, name=request.output.name, progress=watch)
        check_artifact(target, task, built.manifest.shared_cache)
        if draft is not None:
            built = _with_draft(built, source, exported, draft, folder, watch)

        watch.begin("self-check")
        parts.self_check(folder)
        watch.end(f"loads and runs on {stand_in(target.provider)}")

        proof = Proof()
        if request.proof:
            proof = _proven(request, parts, watch, folder, source, exported, built)
        else:
            placement = report_placement(folder, built.manifest)
            proof = Proof(missed=broken_promises(check_placement(placement)))
            _check_missed(request, proof, "")
        manifest = _seal(folder, built, request, proof)
        publish.swap(folder, request.output)
    return CompileResult(
        output=request.output,
        task=task,
        target=target.name,
        passes=target.passes,
        content_digest=str(manifest.summary["content_digest"]),
        size=sum(record.size for record in manifest.files),
        seconds=time.perf_counter() - started,
        summary=manifest.summary,
        missed=proof.missed,
    )


def house() -> Parts:
    """The real parts. They load torch and ONNX Runtime, so only a compile asks for them."""
    from onnxforge.models import export_model, open_model

    return Parts(
        open_model=lambda ref, revision: check_tokenizer(open_model(ref, revision=revision)),
        export_model=export_model,
        self_check=self_check,
        prove=_prove,
    )


def _prove(
    staging: Path, source: Source, model: ir.Model | None, options: ProofOptions, ledger: Ledger
) -> Proof:
    from onnxforge.compiler.proof import prove  # with the plots: an unproven compile does not pay for them

    return prove(staging, source, model, options, ledger)


def _export(
    request: CompileRequest, parts: Parts, watch: Progress, passes: int
) -> tuple[Source, str, ir.Model]:
    watch.begin("open")
    source = parts.open_model(request.model, request.revision)
    check_calibration(request.target, source, request.task)
    check_text_io(request.target, source)
    check_cut(request.target, source)
    watch.end(f"{source.kind}, {len(source.digests)} files")
    watch.begin("export")
    exported = parts.export_model(source, request.task)
    task = exported.metadata_props["onnxforge.task"]
    size = graph_stats(exported).weight_bytes
    watch.plan(size * (passes + 2))  # the export and the writing handle every byte once too
    watch.advance(size)
    watch.end(f"{task}, {exported.graph.num_nodes()} nodes, {size / 1e6:.1f} MB")
    failpoint("after-export")
    return source, task, exported


def _with_draft(
    built: Built, source: Source, exported: ir.Model, draft: Target, folder: Path, watch: Progress
) -> Built:
    """``built``, and beside it the draft model: an artifact of its own, in a folder inside ``folder``."""
    into = folder / DRAFT_FOLDER
    into.mkdir()
    name, within = f"{built.manifest.name}-{DRAFT_FOLDER}", Within(watch, DRAFT_FOLDER)
    drafted = build(source, exported, draft, built.manifest.task, into, name=name, progress=within)
    manifest = with_new_files(folder, built.manifest)
    write_manifest(folder, manifest)
    return replace(built, manifest=manifest, ledger=replace(built.ledger, draft=drafted.ledger))


def _proven(
    request: CompileRequest,
    parts: Parts,
    watch: Progress,
    folder: Path,
    source: Source,
    exported: ir.Model,
    built: Built,
) -> Proof:
    """Measure and write the report; refuse to go on when the budget is missed."""

    def build_reference(name: str, into: Path) -> None:
        into.mkdir(parents=True, exist_ok=True)
        build(source, exported, _reference_target(name), built.manifest.task, into, name=name)

    watch.begin("proof")
    options = ProofOptions(
        target=request.target.name,
        build_reference=build_reference,
        summary=request.target.summary,
        budget=request.target.budget,
        command=request.command,
        text=request.eval_text,
        speculation=request.target.speculation,
    )
    proof = parts.prove(folder, source, built.model, options, built.ledger)
    watch.end("; ".join(proof.missed) or "within budget")
    if proof.missed and not request.allow_missed_budget:
        kept = Path(tempfile.mkdtemp(prefix="onnxforge-report-"))
        shutil.copytree(folder / "report", kept, dirs_exist_ok=True)
        _check_missed(request, proof, f"; the report is in {kept}")
    return proof


def _check_missed(request: CompileRequest, proof: Proof, kept: str) -> None:
    """Refuse to publish what misses its budget; without a proof that is where its nodes would run."""
    if proof.missed and not request.allow_missed_budget:
        raise BudgetMissed(
            f"Target `{request.target.name}` misses its budget: {'; '.join(proof.missed)}. "
            f"{proof.worst}{' ' if proof.worst else ''}Nothing was published{kept}. "
            "Publish it all the same with `--allow-missed-budget`."
        )


def _seal(folder: Path, built: Built, request: CompileRequest, proof: Proof) -> Manifest:
    """Add the recipe and the numbers, and write the manifest that is published: the last file of all."""
    calibrated = use_summary(uses_of(built.model))
    recipe = Recipe(request.model, request.target, built.manifest.task, request.revision)
    (folder / "report").mkdir(exist_ok=True)
    (folder / "report" / "recipe.json").write_text(to_json(recipe) + "\n", encoding="utf-8")
    manifest = with_new_files(folder, built.manifest)
    sealed = replace(
        manifest,
        summary={**manifest.summary, **calibrated, **proof.summary, "proof": request.proof},
        speculation=proof.speculation or unmeasured(request.target),
        provider_options={**manifest.provider_options, **proof.provider_options},
    )
    write_manifest(folder, sealed)
    failpoint("after-seal")
    return sealed


def _reference_target(name: str) -> Target:
    if name == EXPORT:
        return Target(name=EXPORT, summary="the source's own graph", passes=())
    return next(target for target in TARGETS if target.name == name)
