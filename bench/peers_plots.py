"""The pictures of `peers.py`: one bar a system, ours in colour; what is not of equal quality is pale."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure
from peers_page import LOWER, Columns, Reading

OURS, PEER, PALE = "#1f6feb", "#6e7781", "#d0d7de"
_WIDTH, _DPI = 11.0, 110


def write_plots(reading: Reading, folder: Path, name: str) -> dict[str, str]:
    """PNGs beside the page, as far as something was measured; captions by file name."""
    decoders, encoders = [*reading.content["systems"]], [*reading.encoders]
    ways = [way for names in reading.ways.values() for way in names]
    owner = {way: system for system, names in reading.ways.items() for way in names}
    speed = {column: found for column, found in reading.speed.items() if column not in LOWER}
    encoder = {column: found for column, found in reading.encoder.items() if column not in LOWER}
    generation = {
        column: found for column, found in reading.generation.items() if column in ("grounded", "open")
    }
    colors = {system: color(system in reading.ours, reading.equal.get(system)) for system in decoders}
    plots = {
        "speed": ("Prompts and decoding, tokens/s", speed, decoders, colors),
        "generation": ("Generation, tokens/s", generation, ways, {way: colors[owner[way]] for way in ways}),
        "encoder": (
            "Sentences/s, batch x tokens",
            encoder,
            encoders,
            {n: color(n in reading.own_encoders, reading.equal_encoders.get(n)) for n in encoders},
        ),
    }
    written = {}
    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        for part, (caption, columns, rows, hues) in plots.items():
            if columns:
                figure = bars(caption, columns, rows, hues)
                figure.savefig(folder / f"{name}-{part}.png", metadata={"Software": None})
                written[f"{name}-{part}.png"] = caption
    return written


def color(ours: bool, equal: bool | None) -> str:
    return OURS if ours else PALE if equal is False else PEER


def bars(caption: str, columns: Columns, rows: Sequence[str], hues: Mapping[str, str]) -> Figure:
    """One panel a column, one bar a row with the quartiles' half-distance, best on its own scale."""
    rows = [row for row in rows if any(row in found for found in columns.values())]
    figure = Figure(figsize=(_WIDTH, 1.2 + 0.28 * len(rows)), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (title, found) in zip(panels, columns.items(), strict=True):
        for y, row in enumerate(rows):
            if row in found:
                samples = found[row]
                axes.barh(y, samples.median, 0.75, color=hues[row], xerr=samples.median * samples.spread)
                axes.annotate(f" {samples.median:,.0f}", (samples.median, y), va="center")
        axes.set_title(title)
        axes.margins(x=0.3)
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].invert_yaxis()
    figure.suptitle(caption)
    return figure
