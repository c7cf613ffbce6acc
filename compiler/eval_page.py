"""What `eval` prints: llama-perplexity's lines for people, one object for machines."""

from collections.abc import Sequence

from onnxforge.compiler.evaluate import DecoderScore, EncoderScore
from onnxforge.compiler.evidence import Json, to_json
from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.perplexity import Divergence
from onnxforge.compiler.spread import Spread

_WIDTH = 30
_LEAST, _MOST = "Minimum", "Maximum"


def decoder_page(scores: Sequence[DecoderScore]) -> str:
    """Each text's protocol, estimate and divergence; behind several texts, a table with a row for each."""
    parts = []
    for score in scores:
        found = score.perplexity
        parts += [score.protocol.sentence(), f"Final estimate: PPL = {found.value:.4f} +/- {found.error:.5f}"]
        parts += _divergence_lines(score.divergence) if score.divergence else []
        parts.append("")
    return "\n".join(parts) + (_rows(scores) if len(scores) > 1 else "")


def encoder_page(scores: Sequence[EncoderScore]) -> str:
    """Each text's protocol and cosines."""
    lines = []
    for score in scores:
        found = score.parity
        lines += [
            _encoder_protocol(score),
            _line("Mean cosine", f"{found.mean_cosine:.7f}"),
            _line("Minimum cosine", f"{found.min_cosine:.7f}"),
            _line(f"Maximum difference of {found.output}", f"{found.max_abs:.6g}"),
        ]
        if found.label_agreement is not None:
            lines.append(_line("Same label", f"{100 * found.label_agreement:.3f} %"))
        lines.append("")
    return "\n".join(lines)


def decoder_json(folder: str, base: str | None, scores: Sequence[DecoderScore]) -> dict[str, Json]:
    """``texts`` holds a row for each; of a single text, everything is at the top too."""
    rows = [_decoder_row(score) for score in scores]
    return _whole(folder, base, rows)


def encoder_json(folder: str, base: str, scores: Sequence[EncoderScore]) -> dict[str, Json]:
    """As :func:`decoder_json`."""
    rows: list[dict[str, Json]] = []
    for score in scores:
        parity = to_json(score.parity)
        assert isinstance(parity, dict)
        row: dict[str, Json] = {"text": score.text, "sha256": score.sha256, "longest": score.longest}
        rows.append({**row, "cosine": score.parity.mean_cosine, **parity})
    return _whole(folder, base, rows)


def _whole(folder: str, base: str | None, rows: list[dict[str, Json]]) -> dict[str, Json]:
    top: dict[str, Json] = {**rows[0]} if len(rows) == 1 else {}
    return {**top, "artifact": folder, "base": base, "texts": list(rows)}


def _decoder_row(score: DecoderScore) -> dict[str, Json]:
    found, protocol = score.perplexity, to_json(score.protocol)
    assert isinstance(protocol, dict)
    del protocol["scored_tokens"]  # which is what `tokens` says
    row: dict[str, Json] = {
        "perplexity": found.value,
        "error": found.error,
        "nll": found.nll,
        "tokens": found.tokens,
        "protocol": score.protocol.sentence(),
        **protocol,
    }
    return row | (_divergence_row(score.divergence) if score.divergence else {})


def _divergence_row(found: Divergence) -> dict[str, Json]:
    return {
        "base_perplexity": found.reference.value,
        "base_error": found.reference.error,
        "ratio": found.ratio,
        "ratio_error": found.ratio_error,
        "correlation": found.correlation,
        "kl": found.mean_kl,
        "kl_error": found.kl.error,
        "median_kl": found.kl.median,
        "max_kl": found.max_kl,
        "kl_percentiles": to_json(found.kl.percentiles),
        "top1": found.top1_agreement,
        "top5": found.top5_agreement,
        "probability_change": to_json(found.probability),
        "probability_change_rms": found.probability_rms,
        "max_abs_logit_diff": found.max_abs_logit_diff,
    }


def _divergence_lines(found: Divergence) -> list[str]:
    base, ours, tokens = found.reference, found.candidate, found.candidate.tokens
    log_ratio = ours.nll - base.nll
    share = 100 * found.top1_agreement
    error = 100 * (found.top1_agreement * (1 - found.top1_agreement) / max(tokens - 1, 1)) ** 0.5
    return [
        "====== Perplexity statistics ======",
        _line("Mean PPL(Q)", f"{ours.value:.6f} ± {ours.error:.6f}"),
        _line("Mean PPL(base)", f"{base.value:.6f} ± {base.error:.6f}"),
        _line("Cor(ln(PPL(Q)), ln(PPL(base)))", f"{100 * found.correlation:.2f}%"),
        _line("Mean ln(PPL(Q)/PPL(base))", f"{log_ratio:.6f} ± {found.ratio_error / found.ratio:.6f}"),
        _line("Mean PPL(Q)/PPL(base)", f"{found.ratio:.6f} ± {found.ratio_error:.6f}"),
        _line("Mean PPL(Q)-PPL(base)", f"{ours.value - base.value:.6f}"),
        "====== KL divergence statistics ======",
        *_spread_lines("KLD", found.kl, 1, ""),
        "====== Token probability statistics ======",
        *_spread_lines("Δp", found.probability, 100, "%"),
        _line("RMS Δp", f"{100 * found.probability_rms:.3f}%"),
        _line("Same top p", f"{share:.3f} ± {error:.3f} %"),
        _line("Base's top p among top 5", f"{100 * found.top5_agreement:.3f} %"),
        _line("Maximum logit difference", f"{found.max_abs_logit_diff:.6g}"),
    ]


def _spread_lines(what: str, found: Spread, factor: float, unit: str) -> list[str]:
    def shown(value: float) -> str:
        return f"{factor * value:.{3 if unit else 6}f}{unit}"

    named = {"50.0": "Median"}
    return [
        _line(f"Mean    {what}", f"{shown(found.mean)} ± {shown(found.error)}"),
        _line(f"{_MOST} {what}", shown(found.maximum)),
        *(_line(f"{named.get(p, p + '%'):<7} {what}", shown(v)) for p, v in found.percentiles.items()),
        _line(f"{_LEAST} {what}", shown(found.minimum)),
    ]


def _rows(scores: Sequence[DecoderScore]) -> str:
    held = all(score.divergence for score in scores)
    header = ["text", "windows", "tokens", "PPL", "+/-"]
    header += ["PPL(base)", "ratio", "KLD", "top 1", "top 5"] if held else []
    return table(header, [_row(score) for score in scores], right=tuple(range(1, len(header))))


def _row(score: DecoderScore) -> list[str]:
    found, d = score.perplexity, score.divergence
    row = [score.protocol.text, str(score.protocol.windows), str(found.tokens)]
    row += [f"{found.value:.4f}", f"{found.error:.4f}"]
    if d is not None:
        row += [f"{d.reference.value:.4f}", f"{d.ratio:.5f}", f"{d.mean_kl:.6f}"]
        row += [f"{100 * d.top1_agreement:.2f}%", f"{100 * d.top5_agreement:.2f}%"]
    return row


def _line(label: str, value: str) -> str:
    return f"{label:<{_WIDTH}}: {value}"


def _encoder_protocol(score: EncoderScore) -> str:
    return (
        f"{score.text} (sha256 {score.sha256[:12]}), {score.parity.sentences} sentences, special tokens "
        f"added, at most {score.longest} tokens, ragged batches; cosine of "
        f"{'masked means of ' if score.parity.output == 'last_hidden_state' else ''}{score.parity.output}"
    )
