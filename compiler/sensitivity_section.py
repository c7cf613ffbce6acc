"""The sensitivity section of a report: what each MatMul does to the model when it alone is quantized."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from onnxforge.compiler.markdown_table import table
from onnxforge.passes.notes import Note

_SHOWN = 16
_KEPT, _STATIC = "#d29922", "#1f6feb"
_LEAST = 1e-9
"""Where a logarithmic axis ends: a MatMul that moves nothing at all has no logarithm."""


def sensitivity_section(measures: Sequence[Note]) -> str:
    """The most sensitive MatMuls as a table; empty where no pass measured."""
    ranked = _ranked(measures)
    if not ranked:
        return ""
    rows = [(f"`{note.where}`", f"{note.value:.2g}", note.reason) for note in ranked[:_SHOWN]]
    outcomes = sorted({note.reason for note in ranked})
    counts = ", ".join(f"{sum(n.reason == outcome for n in ranked)} {outcome}" for outcome in outcomes)
    head = (
        f"## Sensitivity\n\nHow far the model's answers move when one MatMul alone becomes {ranked[0].what} "
        f"(mean KL in nats over calibration tokens; for embeddings 1 - cosine). {counts}; "
        f"all {len(ranked)} are in report.json.\n\n"
    )
    return head + table(("MatMul", "moves the answers by", "outcome"), rows, right=(1,))


def draw_sensitivity(measures: Sequence[Note], figure: Figure) -> bool:
    """A bar for every MatMul, most sensitive first, on a logarithmic axis."""
    ranked = _ranked(measures)
    if not ranked:
        return False
    axes = figure.subplots()
    for outcome, color in zip(sorted({note.reason for note in ranked}), (_KEPT, _STATIC), strict=False):
        places = [place for place, note in enumerate(ranked) if note.reason == outcome]
        axes.bar(
            places, [max(ranked[place].value, _LEAST) for place in places], 1.0, color=color, label=outcome
        )
    axes.set_yscale("log")
    axes.set_xlabel("MatMul, most sensitive first")
    axes.set_ylabel("divergence alone")
    axes.legend(frameon=False)
    return True


def _ranked(measures: Sequence[Note]) -> list[Note]:
    return sorted(measures, key=lambda note: (-note.value, note.where))
