"""``--draft layer-skip`` and ``--draft prune-layers=0.6``: what they do to a target."""

from dataclasses import replace

from onnxforge.compiler.draft_model import PRUNE, draft_target
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.targets import CPU, Target
from onnxforge.runtimes.speculation import LAYER_SKIP

SKIP_PASS, SKIP_GRAPH = "skip-layers", "onnx/model_skip.onnx"
"""The pass, and what it writes."""
_SEARCH = "search-skipped"
_LOOP, _MARKED = "add-speculative-loop", "marked"
_ATTENTION = "fuse-attention"


def with_draft(target: Target, text: str) -> Target:
    """``target`` with what drafts come from.

    ``layer-skip`` is a graph that can leave layers out: those of a search, or those named (``=10+12``).
    ``prune-UNIT=SHARE,...`` is a draft model, pruned like that (:func:`draft_target`).

    Raises:
        RequestRefused: ``text`` is no way to draft, or ``target`` has no cache that drafts can share.
    """
    kind, _, branches = text.partition("=")
    if not kind.startswith(PRUNE) and (kind != LAYER_SKIP or ("=" in text and not branches)):
        raise RequestRefused(
            f"--draft {text}: write {LAYER_SKIP} (a search chooses what drafts leave out), "
            f"{LAYER_SKIP}=10+12 (the numbers of residual branches, in the graph's order), or "
            f"{PRUNE}layers=0.6,{PRUNE}mlp=0.2 (a pruned copy drafts). A draft model from elsewhere is "
            "compiled by itself and named when requests are made: `run --draft DIR`."
        )
    if target.provider != CPU or _ATTENTION not in target.pass_names:
        raise RequestRefused(
            f"--draft {text}: target `{target.name}` cannot share its cache with a draft. That takes the "
            f"GroupQueryAttention of a pass `{_ATTENTION}`, on the CPU."
        )
    if kind.startswith(PRUNE):
        drafted = replace(target, draft=text)
        draft_target(drafted)
        return drafted
    named = zip(target.passes, target.pass_names, strict=True)
    kept = replace(target, passes=tuple(p for p, name in named if name not in (SKIP_PASS, _SEARCH)))
    at = kept.pass_names.index(_LOOP) if _LOOP in kept.pass_names else len(kept.passes)
    steps = (f"{SKIP_PASS}{{branches={branches}}}",) if branches else (_SEARCH, SKIP_PASS)
    loop = (f"{_LOOP}{{branches={branches or _MARKED}}}",) if at < len(kept.passes) else ()
    return replace(kept, passes=(*kept.passes[:at], *steps, *loop, *kept.passes[at + 1 :]))


def skips_layers(target: Target) -> bool:
    """Whether artifacts of ``target`` come with a graph that can leave layers out."""
    return SKIP_PASS in target.pass_names
