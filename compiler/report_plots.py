"""The pictures of a report: size, operators, speed, and drift by layer. Same numbers, same pixels."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import matplotlib as mpl
from matplotlib.figure import Figure

from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.sensitivity_section import draw_sensitivity
from onnxforge.compiler.speculation_section import draw_speculation
from onnxforge.passes.kept_float import STATIC_W8A8

_BEFORE, _AFTER, _GOOD = "#9aa5b1", "#1f6feb", "#2da44e"
_SIZE = (8.0, 4.5)
_DPI = 110
_MOST_OPS = 14
_LEAST_CHANGE = 1e-3
"""Passes that change the size by less than this share get no bar."""

Draw: TypeAlias = Callable[[Evidence, Figure], bool]


def write_plots(evidence: Evidence, folder: Path) -> dict[str, str]:
    """Write the PNGs that the evidence can fill into ``folder``; returns captions by file name."""
    plots: Mapping[str, tuple[str, Draw]] = {
        "size.png": ("Bytes of weights, pass by pass", _size_waterfall),
        "operators.png": ("Operators before and after", _operators),
        "speed.png": ("Tokens per second beside the baseline, median and spread", _speed),
        "speculation.png": ("What drafting costs and brings", _speculation),
        "layers.png": ("Signal-to-noise of every layer against the reference", _layers),
        "sensitivity.png": ("Sensitivity of every MatMul to static W8A8", _sensitivity),
    }
    written = {}
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        for name, (caption, draw) in plots.items():
            figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
            if draw(evidence, figure):
                figure.suptitle(f"{evidence.model}, {evidence.target}: {caption.lower()}", fontsize=10)
                figure.savefig(folder / name, metadata={"Software": None})
                written[name] = caption
    return written


def _size_waterfall(evidence: Evidence, figure: Figure) -> bool:
    records = evidence.ledger.records
    if not records:
        return False
    steps = [("export", records[0].before.weight_bytes)]
    steps += [(r.text.split("{")[0], r.after.weight_bytes) for r in records]
    least = _LEAST_CHANGE * max(size for _, size in steps)
    kept = [steps[0], *(new for old, new in pairwise(steps) if abs(new[1] - old[1]) > least)]
    labels = [label for label, _ in kept] + ["artifact"]
    axes = figure.subplots()
    for x, (_, value) in enumerate(kept):
        last = kept[x - 1][1] if x else 0
        low, high = sorted((last, value))
        axes.bar(x, (high - low) / 1e6, bottom=low / 1e6, color=_BEFORE if value >= last else _GOOD)
        change = value - last
        axes.annotate(
            f"{change / 1e6:+,.1f}" if x else f"{value / 1e6:,.1f}", (x, high / 1e6), ha="center", va="bottom"
        )
    axes.bar(len(kept), evidence.size / 1e6, color=_AFTER)
    axes.annotate(f"{evidence.size / 1e6:,.1f}", (len(kept), evidence.size / 1e6), ha="center", va="bottom")
    axes.set_xticks(range(len(labels)), labels, rotation=20, ha="right")
    axes.set_ylabel("MB")
    return True


def _operators(evidence: Evidence, figure: Figure) -> bool:
    before, after = evidence.ops_before, evidence.ops_after
    names = sorted(before.keys() | after.keys(), key=lambda n: (-max(before.get(n, 0), after.get(n, 0)), n))[
        :_MOST_OPS
    ]
    axes = figure.subplots()
    rows = range(len(names))
    axes.barh([r - 0.2 for r in rows], [before.get(n, 0) for n in names], 0.4, color=_BEFORE, label="export")
    axes.barh([r + 0.2 for r in rows], [after.get(n, 0) for n in names], 0.4, color=_AFTER, label="artifact")
    axes.set_yticks(rows, [n.removeprefix("com.microsoft.") for n in names])
    axes.invert_yaxis()
    axes.set_xlabel(f"nodes ({sum(before.values()):,} before, {sum(after.values()):,} after)")
    axes.legend(frameon=False)
    return True


def _speed(evidence: Evidence, figure: Figure) -> bool:
    if evidence.speed is None:
        return False
    panels = figure.subplots(1, len(evidence.speed.timings), squeeze=False)[0]
    for axes, timing in zip(panels, evidence.speed.timings, strict=True):
        base = evidence.baseline_speed.timing(timing.test.name) if evidence.baseline_speed else None
        pairs = [("baseline", base, _BEFORE)] if base else []
        for x, (_, t, color) in enumerate([*pairs, ("artifact", timing, _AFTER)]):
            low, high = t.median - min(t.rates), max(t.rates) - t.median
            axes.bar(x, t.median, 0.7, color=color, yerr=[[low], [high]], capsize=3)
            axes.annotate(f"{t.median:,.0f}", (x, max(t.rates)), ha="center", va="bottom")
        axes.set_xticks(range(len(pairs) + 1), [*(p[0] for p in pairs), "artifact"])
        axes.set_title(timing.test.name, fontsize=9)
    panels[0].set_ylabel("sentences/s" if evidence.speed.timings[0].test.sentences else "tokens/s")
    return True


def _speculation(evidence: Evidence, figure: Figure) -> bool:
    return draw_speculation(evidence.speculation, figure)


def _layers(evidence: Evidence, figure: Figure) -> bool:
    if not evidence.layers:
        return False
    axes = figure.subplots()
    axes.bar([e.layer for e in evidence.layers], [e.sqnr_db for e in evidence.layers], color=_AFTER)
    axes.set_xlabel("layer")
    axes.set_ylabel("SQNR, dB (more is closer)")
    return True


def _sensitivity(evidence: Evidence, figure: Figure) -> bool:
    return draw_sensitivity(evidence.ledger.measures(STATIC_W8A8), figure)
