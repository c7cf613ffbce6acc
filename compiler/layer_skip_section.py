"""The layer-skip part of a report: what drafts could leave out, and what that does on sample prompts."""

from collections.abc import Sequence

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.speculation_types import LayerSkipReport, SpeculationReport
from onnxforge.passes.notes import Note
from onnxforge.passes.skip_layers import CHOSEN

_SHOWN = 12


def layer_skip_section(measures: Sequence[Note], found: SpeculationReport | None) -> str:
    """Markdown; empty where drafts leave no layers out."""
    parts = [_measured(found.layer_skip) if found is not None else "", _sets(measures)]
    if not any(parts):
        return ""
    return "## Layer skip\n\n" + "\n".join(part for part in parts if part)


def _measured(found: LayerSkipReport | None) -> str:
    if found is None:
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
        for run in found.samples
    ]
    header = ("sample prompt", "", "drafted", "accepted", "", "of one-row decoding")
    return f"{found.reason[:1].upper()}{found.reason[1:]}.\n\n" + table(header, rows, right=(2, 3, 4, 5))


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
