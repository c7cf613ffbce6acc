"""The layer part of a report: what the model is without each layer, and which were removed."""

from collections.abc import Sequence

from onnxforge.compiler.markdown_table import table
from onnxforge.passes.notes import Note

_SHOWN = 40


def layer_rank_section(measures: Sequence[Note]) -> str:
    """Markdown, in the order of the ranking; empty where no step ranked layers."""
    if not measures:
        return ""
    head = (
        "## Layers\n\nWhat `rank-layers` measured on calibration text. By damage: how far the model is from "
        "the whole one once this layer is gone and those above it (KL in nats; for embeddings 1 - cosine). "
        "By influence: 1 - cosine between what enters the layer and what leaves it.\n\n"
    )
    rows = [(note.where, f"{note.value:.4g}", note.reason) for note in measures[:_SHOWN]]
    more = len(measures) - _SHOWN
    rest = f"\n{more} more are in report.json.\n" if more > 0 else ""
    return head + table(("", "measured", ""), rows, right=(1,)) + rest
