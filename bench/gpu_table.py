"""The tables of `gpu.py`, made from its rows: the same whether they were measured now or read from a file."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import groupby

from gpu_forms import FORMS
from gpu_roofline import Ceilings, Decoder, Product, percent
from gpu_rows import Row, Rows
from gpu_speed import BASE, REPLAYED

FEWER_BITS = 4
GOOD_ENOUGH = 0.05
"""Relative error of a product beyond which a form of 8 bits is called wrong, not fast."""
SPEED_HEADER = (
    "model", "target", "rows x context", "prefill, tokens/s", "of fp16", "of the bound",
    "decode, tokens/s", "of fp16", "of the bound", "spread", "memory, GB",
)  # fmt: skip
Cells = tuple[str, ...]


def ceilings_of(rows: Rows) -> Ceilings | None:
    """The device's, if they were measured."""
    found = rows.get("ceilings")
    if not found:
        return None
    bandwidth = max(found["copy_bytes_per_second"], found["row_bytes_per_second"])
    return Ceilings(bandwidth, found["operations_per_second"])


def speed_table(rows: Rows) -> list[Cells]:
    """One line for every measured cell; `cuda-fp16` with the same note is what it is held against."""
    found, ceilings = rows.under("speed/"), ceilings_of(rows)
    bases = {(r["model"], r["batch"], r["context"], note_of(r)): r for r in found if r["target"] == BASE}
    plain = {key[:3]: row for key, row in bases.items() if not key[3]}
    lines = []
    for row in found:
        cell = row["model"], row["batch"], row["context"]
        base = bases.get((*cell, note_of(row)), plain.get(cell))
        costs = costs_of(rows, row)
        prefill, decode = bounds(row, costs, ceilings) if costs and ceilings else ("", "")
        slow, fast = max(row["step_seconds"]), min(row["step_seconds"])
        lines.append(
            (
                row["model"],
                row["variant"] + (" *" if row.get("warnings") else ""),
                f"{row['batch']} x {row['context']}",
                f"{row['prefill_rate']:,.0f}",
                _times(row, base, "prefill_rate"),
                prefill,
                f"{row['decode_rate']:,.1f}",
                _times(row, base, "decode_rate"),
                decode,
                f"{100 * (slow - fast) / statistics.median(row['step_seconds']):.0f}%",
                f"{row['own_bytes'] / 1e9:.2f}" if row["own_bytes"] else "",
            )
        )
    return lines


def note_of(row: Row) -> str:
    """What is different from the plain target; base rows exist for the CUDA graph's note only."""
    note = row["variant"].removeprefix(row["target"]).strip()
    return note if note == REPLAYED else ""


def costs_of(rows: Rows, row: Row) -> Decoder | None:
    """Bytes and multiply-adds of the row's model, which were read when it was loaded."""
    found = rows.get(f"load/{row['model']}/{row['variant']}")
    if not found:
        return None
    return Decoder(found["weight_bytes"], found["cache_bytes_per_position"], found["macs"])


def bounds(row: Row, costs: Decoder, ceilings: Ceilings) -> tuple[str, str]:
    """Percent of the bound, of the prompt and of a step in the middle of those that were timed."""
    tokens, depth = row["batch"] * row["context"], row["context"] + row["steps"] / 2
    prefill = percent(costs.prefill_floor(ceilings, tokens), tokens / row["prefill_rate"])
    step = row["batch"] / row["decode_rate"]
    decode = percent(costs.decode_floor(ceilings, row["batch"], depth), step)
    return f"{prefill:.0f}%", f"{decode:.0f}%"


def product_table(rows: Rows) -> tuple[Cells, list[Cells]]:
    """One line for every shape and M: microseconds of each form, and percent of the bound."""
    ceilings = ceilings_of(rows)
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for row in rows.under("product/"):
        cell = f"{row['ms'] * 1e3:,.1f}"
        if ceilings:
            cell += f" ({percent(product_of(row, rows).floor(ceilings), row['ms'] / 1e3):.0f}%)"
        lines.setdefault((f"{row['inner']} x {row['columns']}", row["rows"]), {})[row["form"]] = cell
    keys = [form.key for form in FORMS]
    header = ("K x N", "M", *keys)
    return header, [(s, str(m), *(cells.get(key, "") for key in keys)) for (s, m), cells in lines.items()]


def product_of(row: Row, rows: Rows) -> Product:
    """The row's product, with the bytes that its form stores."""
    form = next(form for form in FORMS if form.key == row["form"])
    element = int(rows.get("ceilings").get("element_bytes", 2))
    stored = element if form.bits > 8 else form.stored
    weight = int(stored * row["inner"] * row["columns"])
    return Product(row["rows"], row["inner"], row["columns"], weight, element)


def winners(rows: Sequence[Row], bits: int) -> dict[tuple[str, int], tuple[str, float]]:
    """For each shape and M the fastest form of ``bits`` bits, and how often as fast as float16 it is.

    A form whose numbers are wrong does not win; where float16 itself is faster, that is named.
    """
    keys = {form.key: form for form in FORMS}
    found = {}
    ordered = sorted(rows, key=lambda row: (row["inner"], row["columns"], row["rows"]))
    for (inner, columns, count), group in groupby(
        ordered, lambda row: (row["inner"], row["columns"], row["rows"])
    ):
        rivals = {row["form"]: row for row in group}
        base = rivals.get(FORMS[0].key)
        right = [
            row
            for key, row in rivals.items()
            if keys[key].bits == 16 or (keys[key].bits == bits and _is_right(row, bits))
        ]
        if base and _is_right(base, 16) and right:
            best = min(right, key=lambda row: row["ms"])
            found[f"{inner} x {columns}", count] = best["form"], base["ms"] / best["ms"]
    return found


def winner_table(rows: Rows, bits: int) -> tuple[Cells, list[Cells]]:
    """Shapes down, M across."""
    found = winners(rows.under("product/"), bits)
    counts = sorted({count for _, count in found})
    shapes = list(dict.fromkeys(shape for shape, _ in found))
    header = (f"{bits} bits: K x N", *(f"M = {count}" for count in counts))
    lines = [(shape, *(_won(found.get((shape, count))) for count in counts)) for shape in shapes]
    return header, lines


def form_table(rows: Rows) -> list[Cells]:
    """What ONNX Runtime made of each form, and how far its products are from float32 at most."""
    errors: dict[str, float] = {}
    for row in rows.under("product/"):
        errors[row["form"]] = max(errors.get(row["form"], 0.0), float(row["error_of"]))
    return [
        (
            row["form"],
            row["summary"],
            " ".join(row["operators"]),
            ", ".join(row["places"]),
            f"{100 * errors[row['form']]:.2g}%" if row["form"] in errors else "",
        )
        for row in rows.under("form/")
    ]


def quality_table(rows: Rows) -> list[Cells]:
    """Against `cpu-fp32`, and against the same file on the CPU."""
    lines = []
    for row in rows.under("quality/"):
        far, near = row.get("cpu_fp32"), row["itself_on_cpu"]
        lines.append((row["model"], row["target"], *_quality(far), *_quality(near)[-2:]))
    return lines


def loop_table(rows: Rows) -> list[Cells]:
    """Tokens per second of the three ways, and where the loop in the graph says something else."""
    lines = []
    for row in rows.under("loop/"):
        measured = [row["rates"][name] for name in ("runtime", "same_rule", "graph")]
        rates = [f"{rate:,.1f}" if rate else "lost in noise" for rate in measured]
        places = [row["graph_differs_at"][name] for name in ("runtime", "same_rule")]
        agree = ["all" if place is None else f"{place} of {row['new']}" for place in places]
        lines.append((row["model"], row["target"], str(row["drafts"]), *rates, *agree))
    return lines


def independence_table(rows: Rows) -> list[Cells]:
    """How far a step of eight tokens is from steps of one, and of two of which one is taken back."""
    return [
        (
            row["model"],
            row["target"],
            str(row["positions"]),
            *(text for n in ("one", "two") for text in (str(row[n]["flips"]), f"{row[n]['largest']:.3g}")),
        )
        for row in rows.under("independence/")
    ]


def encoder_table(rows: Rows) -> list[Cells]:
    """Sentences per second."""
    return [
        (row["model"], row["target"], f"{row['batch']} x {row['tokens']}", f"{row['rate']:,.0f}")
        for row in rows.under("encode/")
    ]


def _quality(found: Mapping | None) -> Cells:
    if found is None:
        return "", "", ""
    if "cosine" in " ".join(found):
        return f"cosine {found['min_cosine']:.5f}", "", f"{found['max_abs']:.3g}"
    return f"{found['ratio']:.4f}", f"{found['top1_agreement']:.4f}", f"{found['max_abs_logit_diff']:.3g}"


def _is_right(row: Row, bits: int) -> bool:
    limit = GOOD_ENOUGH if bits > FEWER_BITS else 4 * GOOD_ENOUGH  # 4 bits alone round by a tenth
    return float(row["error_of"]) < limit  # NaN is not


def _won(found: tuple[str, float] | None) -> str:
    return f"{found[0]} {found[1]:.2f}x" if found else ""


def _times(row: Row, base: Row | None, name: str) -> str:
    return f"{row[name] / base[name]:.2f}x" if base else ""
