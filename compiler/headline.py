"""What a compile says on stdout when it is done: a few lines, from the numbers of the manifest's summary."""

from collections.abc import Mapping

from onnxforge.compiler.request import CompileResult

Summary = Mapping[str, float | str | bool]
_SLOWER = 0.95
"""Below this ratio to the baseline a speed is called slower; above, it may be noise."""


def headline(result: CompileResult) -> str:
    """The result's size, quality and speed, and where the report lies; several lines."""
    found = result.summary
    lines = [
        f"{result.output}: {result.task} for {result.target}, {result.size / 1e6:.1f} MB "
        f"in {result.seconds:.1f} s, content {result.content_digest[:12]}"
    ]
    if not found.get("proof"):
        return "\n".join([*lines, "  not proven (--no-proof): neither quality nor speed was measured"])
    lines += [
        f"  {name:<8}  {text}"
        for name, text in (
            ("graph", _graph(found)),
            ("quality", _quality(found)),
            ("speed", _speed(found)),
            ("drafts", _drafts(found)),
            ("memory", _memory(found)),
            ("verified", _unverified(found)),
            ("left", _left(found)),
            ("missed", "; ".join(result.missed)),
            ("slower", _slower(found)),
            ("report", str(result.output / "report" / "index.md")),
        )
        if text
    ]
    return "\n".join(lines)


def _graph(found: Summary) -> str:
    return (
        f"{found['nodes_before']} -> {found['nodes_after']} nodes, "
        f"{found['size_mb']:.1f} MB of graph and weights ({found['size_ratio']:.2f}x the source's)"
    )


def _quality(found: Summary) -> str:
    parts = []
    if "perplexity_ratio" in found:
        parts.append(
            f"perplexity {found['perplexity']:.4g} ({found['perplexity_ratio']:.4f}x the source's), "
            f"top-1 agreement {found['top1_agreement']:.1%}, mean KL {found['mean_kl']:.2g}"
        )
    if "cosine" in found:
        parts.append(f"cosine to the source at least {found['cosine']:.6f}, mean {found['mean_cosine']:.6f}")
    if "label_agreement" in found:
        parts.append(f"labels agree {found['label_agreement']:.1%}")
    return ", ".join(parts)


def _speed(found: Summary) -> str:
    parts = [
        f"{kind} {found[f'{kind}_speed_ratio']:.2f}x the baseline"
        for kind in ("prefill", "decode", "encode")
        if f"{kind}_speed_ratio" in found
    ]
    if "first_token_ms" in found:
        parts.append(f"first token after {found['first_token_ms']:.0f} ms")
    if "roofline_percent" in found:
        parts.append(f"{found['roofline_percent']:.0f}% of the memory bound")
    return ", ".join(parts)


def _drafts(found: Summary) -> str:
    """Whether requests speculate by default, and why."""
    if "speculation" not in found:
        return ""
    state = f"up to {found['speculation_draft_tokens']} tokens a step" if found["speculation"] else "off"
    return f"{state}: {found['speculation_reason']}"


def _memory(found: Summary) -> str:
    if "peak_rss_mb" not in found:
        return ""
    return f"peak {found['peak_rss_mb']:.0f} MB when it runs, loads in {found['load_seconds']:.2f} s"


def _unverified(found: Summary) -> str:
    """Never a silent stand-in: a GPU artifact that no GPU has run is called that."""
    if found.get("verified_on") == found.get("provider"):
        return ""
    there, here = found["provider"], found["verified_on"]
    return f"not on {there}, which is not here: quality was measured on {here}, speed was not"


def _left(found: Summary) -> str:
    """Quantizers that the provider runs by themselves."""
    if not (count := found.get("quantizers_left")):
        return ""
    return f"{count} quantizers beside float operators: the report lists them"


def _slower(found: Summary) -> str:
    """A warning: it never ships a slower artifact in silence."""
    kinds = [
        kind
        for kind in ("prefill", "decode", "encode")
        if isinstance(ratio := found.get(f"{kind}_speed_ratio"), float) and ratio < _SLOWER
    ]
    return (
        f"{' and '.join(kinds)} on this machine: compare another target before you ship this" if kinds else ""
    )
