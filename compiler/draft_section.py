"""The drafts part of a report: what the artifact brings to draft, and what that does on sample prompts."""

from collections.abc import Sequence

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.pruning_section import pruning_steps
from onnxforge.compiler.speculation_types import SpeculationReport
from onnxforge.passes.notes import Note
from onnxforge.passes.skip_layers import CHOSEN
from onnxforge.runtimes.speculation import DRAFT_MODEL, LAYER_SKIP

_SHOWN = 12


def layer_skip_section(measures: Sequence[Note], found: SpeculationReport | None) -> str:
    """Markdown; empty where drafts leave no layers out."""
    return _section("Layer skip", _measured(found, LAYER_SKIP), _sets(measures))


def draft_model_section(ledger: Ledger, found: SpeculationReport | None) -> str:
    """Markdown; empty where no draft model comes with the artifact."""
    steps = pruning_steps(ledger.draft) if ledger.draft is not None else ""
    return _section("Draft model", _measured(found, DRAFT_MODEL), steps)


def _section(title: str, *parts: str) -> str:
    return f"## {title}\n\n" + "\n".join(part for part in parts if part) if any(parts) else ""


def _measured(found: SpeculationReport | None, drafter: str) -> str:
    report = next((d for d in found.drafts if d.drafter == drafter), None) if found is not None else None
    if report is None:
        return ""
    rows = [
        (
            run.name,
            "grounded" if run.grounded else "open",
            str(run.drafted),
            str(run.accepted),
            f"{run.accepted / max(run.drafted, 1):.0%}",
            f"{run.speculative_rate / run.plain_rate:.2f}x",
        )
        for run in report.samples
    ]
    header = ("sample prompt", "", "drafted", "accepted", "", "of one-row decoding")
    return f"{report.reason[:1].upper()}{report.reason[1:]}.\n\n" + table(header, rows, right=(2, 3, 4, 5))


def _sets(measures: Sequence[Note]) -> str:
    """The sets of a search, best first, as they were compared."""
    if not measures:
        return ""
    ranked = sorted(measures, key=lambda note: (note.reason != CHOSEN, -note.value))
    rows = [_row(note) for note in ranked[:_SHOWN]]
    head = (
        f"Branches left out together (numbered in the graph's order), and how often the model then still "
        f"chooses the same token; {len(measures)} sets were tried, all are in report.json. Speeds are "
        "expected ones, by the bytes of the weights.\n\n"
    )
    return head + table(("left out", "", "agrees", ""), rows, right=(2,))


def _row(note: Note) -> tuple[str, ...]:
    branches, _, promise = note.where.partition(": ")
    return f"`{branches}`", promise, f"{note.value:.3f}", note.reason
