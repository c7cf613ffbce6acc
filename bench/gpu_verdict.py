"""What `gpu.py` measured, held against what the CUDA targets were built for."""

import statistics
from collections import Counter

from gpu_rows import Row, Rows
from gpu_speed import BASE
from gpu_table import note_of, winners

LARGE = 1e9
"""Parameters from which on the aims count."""
DECODE_AIM, PREFILL_AIM = 1.5, 0.95
CANDIDATE = "cuda-int8"


def verdict(rows: Rows) -> list[str]:
    """Sentences: the aims with what was measured, which form won where, what is missing."""
    said = [*_aims(rows), *_forms(rows)]
    warned = Counter(
        f"{row['model']} {row['variant']}: {line}"
        for row in rows.under("speed/")
        for line in row.get("warnings", [])
    )
    return said + [f"Warned, in {count} cells: {line}" for line, count in sorted(warned.items())]


def ratios(rows: Rows, name: str) -> dict[str, dict[str, float]]:
    """`cuda-int8` over `cuda-fp16` in models of a billion parameters and more: by note, then by cell."""
    found = [row for row in rows.under("speed/") if _parameters(rows, row) >= LARGE]
    bases = {(*_cell(row), note_of(row)): row for row in found if row["target"] == BASE}
    result: dict[str, dict[str, float]] = {}
    for row in found:
        note = row["variant"].removeprefix(row["target"]).strip()
        base = bases.get((*_cell(row), note_of(row)))
        if row["target"] == CANDIDATE and base:
            place = f"{row['model']} {row['batch']} x {row['context']}"
            result.setdefault(note, {})[place] = row[name] / base[name]
    return result


def _aims(rows: Rows) -> list[str]:
    said = []
    for name, aim, words in (
        ("decode_rate", DECODE_AIM, "decode"),
        ("prefill_rate", PREFILL_AIM, "prefill"),
    ):
        found = ratios(rows, name)
        if not found:
            said.append(f"Aim, {words} >= {aim}x of {BASE} at 1B parameters and more: not measured.")
        for note, cells in found.items():
            held = f"{sum(ratio >= aim for ratio in cells.values())} of {len(cells)} cells"
            worst, best = min(cells, key=cells.__getitem__), max(cells, key=cells.__getitem__)
            said.append(
                f"Aim, {words} >= {aim}x of {BASE} at 1B parameters and more, {note or 'no CUDA graph'}: "
                f"held in {held}; median {statistics.median(cells.values()):.2f}x, "
                f"{cells[best]:.2f}x at best ({best}), {cells[worst]:.2f}x at worst ({worst})."
            )
    return said


def _forms(rows: Rows) -> list[str]:
    said = []
    for bits in (8, 4):
        found = winners(rows.under("product/"), bits)
        for count in sorted({count for _, count in found}):
            won = Counter(form for (_, rows_), (form, _) in found.items() if rows_ == count)
            speeds = [speed for (_, rows_), (_, speed) in found.items() if rows_ == count]
            names = ", ".join(f"{form} ({times})" for form, times in won.most_common())
            said.append(
                f"{bits} bits, M = {count}: {names}; {min(speeds):.2f}x to {max(speeds):.2f}x of float16."
            )
    return said


def _cell(row: Row) -> tuple[str, int, int]:
    return row["model"], row["batch"], row["context"]


def _parameters(rows: Rows, row: Row) -> float:
    return float(rows.get(f"load/{row['model']}/{row['variant']}").get("parameters", 0))
