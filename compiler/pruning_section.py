"""The pruning part of a report: what each step cost and gained, from the first cut to the last rounding."""

from collections.abc import Iterator, Sequence

from onnxforge.compiler.compare_unpruned import PRUNING
from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.observe import PRUNES, Ledger
from onnxforge.compiler.prune_to_budget import ON_TRIAL
from onnxforge.passes.notes import Note

_DISTANCE = "KL of the next token in nats; for embeddings 1 - cosine"


def pruning_section(ledger: Ledger) -> str:
    """Markdown; empty where nothing was compared with an unpruned model, nor tried on a copy."""
    steps = pruning_steps(ledger)
    return f"## Pruning, step by step\n\n{steps}" if steps else ""


def pruning_steps(ledger: Ledger) -> str:
    """The same without a heading."""
    return "\n".join(part for part in (_steps(ledger), _trials(ledger.measures(ON_TRIAL))) if part)


def _steps(ledger: Ledger) -> str:
    rows = list(_rows(ledger))
    if not rows:
        return ""
    head = (
        f"Distance of the answers from the unpruned model's on calibration text ({_DISTANCE}), size of the "
        "weights, and the time of a step of one token in ONNX Runtime on this CPU (for embeddings 8 texts), "
        "as they were behind each step.\n\n"
    )
    return head + table(("behind", "distance", "added", "gained"), rows, right=(1, 2))


def _trials(measures: Sequence[Note]) -> str:
    """What a search tried before it pruned, in its order."""
    if not measures:
        return ""
    head = (
        "What `prune-to-budget` tried: every share alone, with its distance from the whole model "
        f"({_DISTANCE}) and what it leaves, then combinations that should meet the budget. The last was "
        "taken.\n\n"
    )
    rows = [(f"`{note.where}`", f"{note.value:.4f}", note.reason) for note in measures]
    return head + table(("without", "measured", ""), rows, right=(1,))


def _rows(ledger: Ledger) -> Iterator[tuple[str, str, str, str]]:
    """One row for each comparison, with the steps since the last one that changed the graph."""
    since: list[str] = []
    before, pruned = 0.0, False
    for record in ledger.records:
        pruned = pruned or record.text.startswith(PRUNES)
        found = [note for note in record.measures if note.what == PRUNING]
        if found:
            steps = ", ".join(f"`{step}`" for step in since)
            yield steps, f"{found[0].value:.4f}", f"{found[0].value - before:+.4f}", found[0].reason
            since, before = [], found[0].value
        elif record.modified and pruned:
            since.append(record.text)
