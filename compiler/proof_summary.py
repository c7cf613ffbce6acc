"""The headline numbers of a proof, by the names that budgets, manifests and scripts use."""

from onnxforge.compiler.evidence import Evidence
from onnxforge.compiler.speculation_types import SpeculationReport
from onnxforge.compiler.speed_types import SpeedReport


def summarize(evidence: Evidence) -> dict[str, float | str | bool]:
    """Flat and JSON-ready; a key is absent when it was not measured."""
    found: dict[str, float | str | bool] = {
        "parameters": evidence.parameters,
        "size_mb": round(evidence.size / 1e6, 3),
        "size_ratio": round(evidence.size / evidence.reference_size, 5),
        "nodes_before": sum(evidence.ops_before.values()),
        "nodes_after": sum(evidence.ops_after.values()),
        "protocol": evidence.protocol,
        "provider": evidence.provider,
        "verified_on": evidence.verified_on,
    }
    if (q := evidence.quantizers) is not None:
        found |= {
            "quantizers": q.written,
            "quantizers_left": len(q.left),
            "quantizers_left_bytes": sum(item.weight_bytes for item in q.left),
        }
    if (d := evidence.divergence) is not None:
        found |= {
            "perplexity": d.candidate.value,
            "perplexity_reference": d.reference.value,
            "perplexity_ratio": d.ratio,
            "mean_kl": d.mean_kl,
            "top1_agreement": d.top1_agreement,
            "max_abs": d.max_abs_logit_diff,
        }
    if (steps := evidence.decoding) is not None:
        found |= {
            "decoding_max_relative": steps.max_relative,
            "decoding_top1": steps.top1_agreement,
        }
    if (e := evidence.encoder) is not None:
        found |= {"cosine": e.min_cosine, "mean_cosine": e.mean_cosine, "max_abs": e.max_abs}
        if e.label_agreement is not None:
            found["label_agreement"] = e.label_agreement
    if evidence.layers:
        found["worst_layer_sqnr_db"] = min(layer.sqnr_db for layer in evidence.layers)
    if evidence.speed is not None:
        found |= _speed(evidence.speed, evidence.baseline_speed)
        decode = next((r for r in evidence.rooflines if r.bytes_per_token), None)
        if decode is not None:
            found |= {"bytes_per_token": decode.bytes_per_token, "roofline_percent": round(decode.percent, 2)}
    if (drafts := evidence.speculation) is not None:
        found |= _speculation(drafts)
    return found


def _speculation(drafts: SpeculationReport) -> dict[str, float | str | bool]:
    found: dict[str, float | str | bool] = {
        "speculation": drafts.enabled,
        "speculation_draft_tokens": drafts.draft_tokens,
        "speculation_reason": drafts.reason,
    }
    for name, grounded in (("grounded", True), ("open", False)):
        if (speed := drafts.measured(grounded)) is not None:
            found[f"speculation_{name}_speed_ratio"] = round(speed, 4)
    return found


def _speed(ours: SpeedReport, base: SpeedReport | None) -> dict[str, float | str | bool]:
    found: dict[str, float | str | bool] = {
        "load_seconds": round(ours.load_seconds, 4),
        "peak_rss_mb": round(ours.peak_rss / 1e6, 1),
        "threads": ours.threads,
    }
    if ours.first_token is not None:
        seconds = ours.first_token.test.prompt / ours.first_token.median
        found["first_token_ms"] = round(1e3 * seconds, 3)
    for timing in ours.timings:
        test = timing.test
        found[test.name.replace(" @ ", "_")] = round(timing.median, 3)
        theirs = base.timing(test.name) if base else None
        if theirs is None:
            continue
        kind = "encode" if test.sentences else "prefill" if test.prompt else "decode"
        # The first test of a kind is its headline: the longest prompt, the decode from an empty cache.
        found.setdefault(f"{kind}_speed_ratio", round(timing.median / theirs.median, 4))
    return found
