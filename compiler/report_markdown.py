"""The report a person reads: `report/index.md`."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from onnxforge.compiler.cuda_graph_report import cuda_graph_section
from onnxforge.compiler.draft_section import draft_model_section, layer_skip_section
from onnxforge.compiler.evidence import Evidence, cpu_name, versions
from onnxforge.compiler.layer_rank_section import layer_rank_section
from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.placement_report import placement_section
from onnxforge.compiler.pruning_section import pruning_section
from onnxforge.compiler.quantizer_section import quantizer_section
from onnxforge.compiler.sensitivity_section import sensitivity_section
from onnxforge.compiler.speculation_section import speculation_section
from onnxforge.compiler.speed_types import SpeedReport, Timing
from onnxforge.passes.kept_float import STATIC_W8A8
from onnxforge.passes.layer_ranks import LAYER_RANK
from onnxforge.passes.skip_layers import LAYER_SKIP

_MOST_NEAR_MISSES = 8


def markdown(evidence: Evidence, plots: Mapping[str, str]) -> str:
    """The whole report as Markdown; ``plots`` are captions by file name."""
    summary = evidence.target_summary
    parts = [f"# {evidence.model}, compiled for {evidence.target}\n"]
    parts += [f"{summary[0].upper()}{summary[1:]}.\n" if summary else "", _verdict(evidence)]
    parts += [f"> {note}\n" for note in evidence.notes]
    parts += [
        _structure(evidence),
        placement_section(evidence.placement),
        quantizer_section(evidence.quantizers),
        _quality(evidence),
        _speed(evidence),
        _roofline(evidence),
        cuda_graph_section(evidence.cuda_graph),
        speculation_section(evidence.speculation),
        layer_skip_section(evidence.ledger.measures(LAYER_SKIP), evidence.speculation),
        draft_model_section(evidence.ledger, evidence.speculation),
        _size(evidence),
        pruning_section(evidence.ledger),
        _ledger(evidence),
        _calibration(evidence),
        layer_rank_section(evidence.ledger.measures(LAYER_RANK)),
        sensitivity_section(evidence.ledger.measures(STATIC_W8A8)),
    ]
    parts += [f"## {caption}\n\n![{caption}]({name})\n" for name, caption in plots.items()]
    parts.append(_provenance(evidence))
    return "\n".join(part for part in parts if part)


def _verdict(evidence: Evidence) -> str:
    if not evidence.verdicts:
        return "No budget applies to this model and target; the numbers below are measurements.\n"
    where = "" if evidence.is_verified else f" on {evidence.verified_on}"
    rows = [
        (v.line, _number(v.measured), f"held{where}" if v.held else f"**missed**{where}")
        for v in evidence.verdicts
    ]
    return "## Budget\n\n" + table(("promise", "measured", "verdict"), rows, right=(1,))


def _structure(evidence: Evidence) -> str:
    if not evidence.structure:
        return ""
    judged = {
        (True, True): "held",
        (True, False): "held",
        (False, True): "**broken**",
        (False, False): "slower",
    }
    rows = [(c.rule, c.found, judged[c.held, c.required]) for c in evidence.structure]
    head = f"## Structure\n\nWhat {evidence.provider} asks of a graph, checked without running it there.\n\n"
    return head + table(("rule", "found", ""), rows)


def _quality(evidence: Evidence) -> str:
    rows: list[tuple[str, str]] = []
    if (d := evidence.divergence) is not None:
        rows = [
            ("perplexity, reference", f"{d.reference.value:.4f} +/- {d.reference.error:.4f}"),
            ("perplexity, artifact", f"{d.candidate.value:.4f} +/- {d.candidate.error:.4f}"),
            ("perplexity ratio (paired)", f"{d.ratio:.5f} +/- {d.ratio_error:.5f}"),
            ("KL divergence, mean / max (nats)", f"{d.mean_kl:.3g} / {d.max_kl:.3g}"),
            ("same top token", f"{100 * d.top1_agreement:.2f}%"),
            ("largest logit difference", f"{d.max_abs_logit_diff:.3g}"),
        ]
        if (steps := evidence.decoding) is not None:
            rows += [
                ("cached steps against a whole run: same top token", f"{100 * steps.top1_agreement:.1f}%"),
                ("largest difference over the largest logit", f"{steps.max_relative:.2g}"),
            ]
    elif (e := evidence.encoder) is not None:
        rows = [
            ("sentences", str(e.sentences)),
            ("cosine, mean / min", f"{e.mean_cosine:.7f} / {e.min_cosine:.7f}"),
            (f"largest difference of `{e.output}`", f"{e.max_abs:.3g}"),
        ]
        if e.label_agreement is not None:
            rows.append(("same label", f"{100 * e.label_agreement:.2f}%"))
    head = f"## Quality\n\nAgainst {evidence.reference}.\nProtocol: {evidence.protocol}.\n\n"
    return head + table(("measure", "value"), rows, right=(1,))


def _speed(evidence: Evidence) -> str:
    if (ours := evidence.speed) is None:
        return ""
    base = evidence.baseline_speed
    rows = [_speed_row(t, base.timing(t.test.name) if base else None) for t in ours.timings]
    unit = "sentences/s" if ours.timings and ours.timings[0].test.sentences else "tokens/s"
    head = (
        f"## Speed\n\nBeside {evidence.baseline}. {unit}, medians over {len(ours.timings[0].seconds)} "
        f"interleaved rounds, each artifact in its own process, {ours.threads} threads.\n\n"
    )
    lines = table(("test", "artifact", "spread", "baseline", "spread", "ratio"), rows, right=(1, 2, 3, 4, 5))
    return head + lines + "\n" + table(("", "artifact", "baseline"), _process_rows(ours, base), right=(1, 2))


def _speed_row(ours: Timing, base: Timing | None) -> tuple[str, ...]:
    mine = (ours.test.name, f"{ours.median:,.1f}", _spread(ours))
    return (
        (*mine, f"{base.median:,.1f}", _spread(base), f"{ours.median / base.median:.2f}x")
        if base
        else (*mine, "", "", "")
    )


def _process_rows(ours: SpeedReport, base: SpeedReport | None) -> Iterator[tuple[str, str, str]]:
    def both(label: str, text: Sequence[str]) -> tuple[str, str, str]:
        return (label, text[0], text[1] if len(text) > 1 else "")

    reports = [ours, base] if base else [ours]
    if ours.first_token is not None:
        prompt = ours.first_token.test.prompt
        firsts = [f"{1e3 * prompt / r.first_token.median:,.1f} ms" for r in reports if r.first_token]
        yield both(f"time to first token, {prompt}-token prompt", firsts)
    yield both("load", [f"{r.load_seconds:.2f} s" for r in reports])
    yield both("peak memory of the process", [f"{r.peak_rss / 1e6:,.0f} MB" for r in reports])


def _roofline(evidence: Evidence) -> str:
    if not evidence.rooflines or (m := evidence.machine) is None:
        return ""
    rows = [
        (
            r.test,
            f"{r.bytes_per_token / 1e6:,.1f} MB" if r.bytes_per_token else "arithmetic",
            f"{r.bound:,.0f}",
            f"{r.measured:,.0f}",
            f"{r.percent:.0f}%",
        )
        for r in evidence.rooflines
    ]
    head = (
        f"## Roofline\n\nThis machine, {m.threads} threads: reads {m.read_bandwidth / 1e9:.1f} GB/s, "
        f"multiplies {m.float_rate / 1e9:,.0f} GFLOP/s in fp32, {m.integer_rate / 1e9:,.0f} GOP/s int8.\n\n"
    )
    header = ("test", "read per token", "bound, per s", "measured", "of the bound")
    return head + table(header, rows, right=(1, 2, 3, 4))


def _size(evidence: Evidence) -> str:
    t, r = evidence.traffic, evidence.reference_traffic
    rows = [
        (
            "graph and weights on disk",
            f"{evidence.reference_size / 1e6:,.1f} MB",
            f"{evidence.size / 1e6:,.1f} MB",
        ),
        (
            "read per decoded token (no cache)",
            f"{r.weight_bytes / 1e6:,.1f} MB",
            f"{t.weight_bytes / 1e6:,.1f} MB",
        ),
        ("cache per position", f"{r.cache_bytes_per_position:,} B", f"{t.cache_bytes_per_position:,} B"),
        ("nodes", f"{sum(evidence.ops_before.values()):,}", f"{sum(evidence.ops_after.values()):,}"),
    ]
    head = f"## Size\n\n{evidence.parameters:,} parameters.\n\n"
    return head + table(("", "export", "artifact"), rows, right=(1, 2))


def _ledger(evidence: Evidence) -> str:
    if not evidence.ledger.records:
        return ""
    rows = [
        (
            f"`{r.text}`",
            f"{r.before.nodes:,} -> {r.after.nodes:,}",
            f"{(r.after.weight_bytes - r.before.weight_bytes) / 1e6:+,.1f}",
            str(len(r.matches)),
            str(len(r.near_misses)),
            f"{r.seconds:.2f}",
        )
        for r in evidence.ledger.records
    ]
    header = ("pass", "nodes", "weights, MB", "matches", "near-misses", "s")
    text = "## Ledger\n\n" + table(header, rows, right=(1, 2, 3, 4, 5))
    misses = evidence.ledger.near_misses()
    reasons: dict[tuple[str, str], list[str]] = {}
    for note in misses:
        reasons.setdefault((note.what, note.reason), []).append(note.where)
    lines = [
        f"- {what} at `{where[0]}`{f' and {len(where) - 1} more' if len(where) > 1 else ''}: {reason}"
        for (what, reason), where in list(reasons.items())[:_MOST_NEAR_MISSES]
    ]
    if len(reasons) > _MOST_NEAR_MISSES:
        lines.append(f"- {len(reasons) - _MOST_NEAR_MISSES} further reasons are in report.json.")
    return text + ("\nNear-misses:\n\n" + "\n".join(lines) + "\n" if lines else "")


def _calibration(evidence: Evidence) -> str:
    if not evidence.calibration:
        return ""
    rows = [(", ".join(f"`{step}`" for step in use.steps), use.sentence()) for use in evidence.calibration]
    return "## Calibration\n\n" + table(("step", "data"), rows)


def _provenance(evidence: Evidence) -> str:
    rows = [
        ("command", f"`{shlex.join(evidence.command)}`" if evidence.command else "called from Python"),
        ("processor", cpu_name()),
        ("compiled for", evidence.provider),
        ("measured on", evidence.verified_on),
        ("seed", str(evidence.seed)),
        *versions().items(),
    ]
    return "## Provenance\n\n" + table(("", ""), rows)


def _spread(timing: Timing) -> str:
    return f"{min(timing.rates):,.0f} to {max(timing.rates):,.0f}"


def _number(value: float) -> str:
    return f"{value:.6g}"
