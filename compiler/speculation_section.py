"""The speculation section of a report: what a step costs, what was forecast, measured and decided."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.speculation_types import Forecast, SampleRun, SpeculationReport

_SHOWN_ROWS = (1, 2, 3, 4, 6, 8, 12, 16)
_GROUNDED, _OPEN, _COST = "#2da44e", "#d29922", "#1f6feb"


def speculation_section(found: SpeculationReport | None) -> str:
    """Markdown; empty where nothing was measured."""
    if found is None:
        return ""
    state = f"on, up to {found.draft_tokens} drafted tokens a step" if found.enabled else "off"
    parts = [
        f"## Speculation\n\nBy default **{state}**: {found.reason}. Measuring took {found.seconds:.1f} s.\n",
        _rows(found),
        _costs(found),
        _forecasts(found),
        _samples(found),
    ]
    return "\n".join(part for part in parts if part)


def _rows(found: SpeculationReport) -> str:
    rows = found.rows
    exact = (
        "bit for bit the same, so that drafts change no token"
        if rows.is_exact
        else f"different by up to {rows.even_rows:.2g}: drafts could change the text"
    )
    return (
        f"A token's logits in steps of 2 and of 4, 6, ... 16 rows are {exact} ({rows.positions} positions "
        f"compared; drafting reads even steps). Odd steps differ by up to {rows.odd_rows:.2g}. Steps of one "
        f"row, plain decoding's, take other kernels: they differ by up to {rows.single_row:.2g}, and in "
        f"{rows.single_row_flips} likeliest tokens of {rows.single_positions}. *Lossless* is therefore said "
        "against decoding without drafts that reads two rows a step (`min_rows=2`).\n"
    )


def _costs(found: SpeculationReport) -> str:
    header = ("tokens in the cache", "one row, ms", *(f"{k} rows" for k in _SHOWN_ROWS[1:]))
    rows = [
        (
            str(cost.context),
            f"{1e3 * cost.seconds[0]:.2f}",
            *(f"{cost.ratios[k - 1]:.2f}x" for k in _SHOWN_ROWS[1:]),
        )
        for cost in found.costs
    ]
    head = "What a step costs by its rows, over a step of one row; medians of interleaved rounds.\n\n"
    return head + table(header, rows, right=tuple(range(len(header))))


def _forecasts(found: SpeculationReport) -> str:
    if not found.forecasts:
        return ""
    rows = [(_length(f, found), *_cells(f)) for f in found.forecasts]
    head = (
        "Forecast by draft length: the drafter replayed on the sample answers, each step at its cost above. "
        "Speed is over plain decoding by one row.\n\n"
    )
    header = (
        "drafted at most",
        "grounded: tokens a step",
        "rows a step",
        "speed",
        "open: tokens a step",
        "rows a step",
        "speed",
    )
    return head + table(header, rows, right=tuple(range(len(header))))


def _length(forecast: Forecast, found: SpeculationReport) -> str:
    chosen = forecast.draft_tokens == found.draft_tokens
    return f"**{forecast.draft_tokens}**" if chosen else str(forecast.draft_tokens)


def _cells(forecast: Forecast) -> tuple[str, ...]:
    return tuple(
        text
        for side in (forecast.grounded, forecast.open)
        for text in (f"{side.tokens_per_step:.2f}", f"{side.rows_per_step:.2f}", f"{side.speed:.2f}x")
    )


def _samples(found: SpeculationReport) -> str:
    if not found.samples:
        return ""
    rows = [_sample(sample) for sample in found.samples]
    forecast = found.forecast
    for name, grounded in (("all grounded", True), ("all open", False)):
        measured = found.measured(grounded)
        expected = (forecast.grounded if grounded else forecast.open).speed if forecast else None
        rows.append(
            (
                f"**{name}**",
                *("",) * 6,
                "" if measured is None else f"{measured:.2f}x",
                "" if expected is None else f"{expected:.2f}x",
            )
        )
    header = (
        "sample prompt", "prompt", "new tokens", "drafted", "accepted", "plain, tokens/s", "speculative",
        "measured", "predicted",
    )  # fmt: skip
    return "Measured on the sample prompts, greedy, decoding only.\n\n" + table(
        header, rows, right=tuple(range(1, len(header)))
    )


def _sample(sample: SampleRun) -> tuple[str, ...]:
    kind = "grounded" if sample.grounded else "open"
    return (
        f"{sample.name} ({kind})",
        str(sample.prompt_tokens),
        str(sample.tokens),
        str(sample.drafted),
        str(sample.accepted),
        f"{sample.plain_rate:,.1f}",
        f"{sample.speculative_rate:,.1f}",
        f"{sample.speculative_rate / sample.plain_rate:.2f}x",
        "",
    )


def draw_speculation(found: SpeculationReport | None, figure: Figure) -> bool:
    """Left the cost of a step by its rows, right the speeds by draft length, forecast and measured."""
    if found is None:
        return False
    panels = figure.subplots(1, 2 if found.forecasts else 1, squeeze=False)[0]
    for cost, style in zip(found.costs, ("-", "--"), strict=False):
        rows = range(1, len(cost.ratios) + 1)
        panels[0].plot(rows, cost.ratios, style, color=_COST, label=f"{cost.context} tokens cached")
    panels[0].set_xlabel("rows in a step")
    panels[0].set_ylabel("t(k) / t(1)")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    if found.forecasts:
        _draw_forecasts(found, panels[1])
    return True


def _draw_forecasts(found: SpeculationReport, axes: Axes) -> None:
    lengths = [f.draft_tokens for f in found.forecasts]
    for grounded, name, color in ((True, "grounded", _GROUNDED), (False, "open", _OPEN)):
        speeds = [(f.grounded if grounded else f.open).speed for f in found.forecasts]
        axes.plot(lengths, speeds, color=color, label=f"{name}, predicted")
        measured = found.measured(grounded)
        if measured is not None:
            axes.plot([found.draft_tokens], [measured], "o", color=color, label=f"{name}, measured")
    axes.axhline(1.0, color="#9aa5b1", linewidth=0.8)
    axes.set_xlabel("drafted tokens a step, at most")
    axes.set_ylabel("speed over one-row decoding")
    axes.legend(frameon=False)
