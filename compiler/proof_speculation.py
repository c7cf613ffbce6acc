"""The speculation part of a proof: measured in a process of its own, judged, and put into the evidence."""

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.speculation_replay import runtime_curve
from onnxforge.compiler.speculation_types import SpeculationReport
from onnxforge.compiler.speed import MeasurementFailed
from onnxforge.compiler.targets import CPU
from onnxforge.runtimes.artifact import DECODER_TASK, read_manifest
from onnxforge.runtimes.speculation import NGRAM, Speculation

_LEAST_CONTEXT = 64
"""Tokens: below, there is no room for steps of many rows behind anything."""


def speculation(evidence: Evidence, artifact: Path, asked: int | None) -> Evidence:
    """Measure whether requests of ``artifact`` should draft; the evidence with what was found.

    ``asked`` is the target's choice: a draft length, 0 for never, None to decide. Left alone: what cannot
    speculate (encoders, providers other than the CPU's, caches that cannot be rewound in place, the
    shortest contexts), and never.

    Raises:
        MeasurementFailed: the measuring process died.
    """
    manifest = read_manifest(artifact)
    able = manifest.task == DECODER_TASK and manifest.provider == CPU and manifest.shared_cache
    if not able or asked == 0 or manifest.context_length < _LEAST_CONTEXT:
        return evidence
    return replace(evidence, speculation=measured(artifact, asked))


def measured(artifact: Path, asked: int | None) -> SpeculationReport:
    """What :func:`onnxforge.compiler.speculation_child.measure` finds, run in a process of its own."""
    module = "onnxforge.compiler.speculation_child"
    command = [sys.executable, "-m", module, str(artifact), str(threads()), str(asked or "auto")]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines()
        raise MeasurementFailed(
            f"The process that measured speculation ended with {child.returncode}: "
            f"{' / '.join(said[-3:]) or 'it said nothing'}. Compile with `--speculation off` to do without."
        )
    found = pickle.loads(child.stdout)
    assert isinstance(found, SpeculationReport)
    return found


def as_default(found: SpeculationReport | None, known: Speculation | None = None) -> Speculation | None:
    """What artifact.json says to the runtime; None where nothing was measured.

    ``known`` is what it said before: where the graph and the model are that the artifact brings to draft.
    """
    if found is None:
        return None
    return Speculation(
        enabled=found.enabled,
        max_draft_tokens=found.draft_tokens,
        min_rows=2 if found.enabled else 1,
        drafter=next((draft.drafter for draft in reversed(found.drafts) if draft.chosen), NGRAM),
        draft_graph=known.draft_graph if known is not None else None,
        draft_model=known.draft_model if known is not None else None,
        step_cost=runtime_curve(found.costs),
        reason=found.reason,
    )


def complaint(found: SpeculationReport | None) -> str:
    """A promise that is broken: a draft length was asked for, and drafts could change the text."""
    if found is None or not found.asked or found.rows.is_exact:
        return ""
    return f"promised that drafts change no token, found that {found.reason}"
