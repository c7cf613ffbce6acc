"""``--kv int8``: what it does to a target. The pass list is edited, and the promises that it cannot keep."""

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.targets import CPU, CUDA, Bound, BudgetLine, Target

STEPS = ("calibrate-cache", "quantize-cache")
_ATTENTION = "fuse-attention"
_LAST = "cleanup"
_KERNELS: Mapping[str, str] = {
    CPU: "GroupQueryAttention with int8 past and present",
    CUDA: "GroupQueryAttention<fp16, int8> and <bf16, int8>",
}
"""Providers whose attention takes an int8 cache, and the kernel that does."""
_BUDGET: Mapping[str, BudgetLine] = {
    # A cached number may land one step off when a run of one and a run of many round differently. Measured on
    # SmolLM2-135M: 0; a step that reads its cache wrongly is off by far more.
    "decoding_max_relative": BudgetLine("decoding_max_relative", Bound.AT_MOST, 0.05),
    "perplexity_ratio": BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.01),
}


class Cache(StrEnum):
    """Element types that the option takes."""

    INT8 = "int8"


def with_cache(target: Target, cache: Cache) -> Target:
    """``target`` with an int8 cache: measured and quantized at the end, where types no longer change.

    A promise of equal numbers (``max_abs``) becomes one about perplexity; looser promises stay.

    Raises:
        RequestRefused: the target's provider has no attention that takes such a cache.
    """
    if target.provider not in _KERNELS:
        raise RequestRefused(
            f"--kv {cache}: target `{target.name}` runs on {target.provider}, whose attention takes no int8 "
            f"cache. It works on {' and '.join(_KERNELS)}: choose such a target, or leave --kv out."
        )
    names = target.pass_names
    if _ATTENTION not in names:
        raise RequestRefused(
            f"--kv {cache}: target `{target.name}` has no pass `{_ATTENTION}`, and only the "
            "GroupQueryAttention that it makes takes an int8 cache. Add it, or leave --kv out."
        )
    missing = tuple(step for step in STEPS if step not in names)
    at = names.index(_LAST) if _LAST in names else len(names)
    passes = (*target.passes[:at], *missing, *target.passes[at:])
    return replace(target, passes=passes, budget=_budget(target.budget))


def _budget(lines: tuple[BudgetLine, ...]) -> tuple[BudgetLine, ...]:
    exact = any(line.metric == "max_abs" for line in lines)
    kept = [_looser(line) for line in lines if line.metric != "max_abs"]
    if exact and all(line.metric != "perplexity_ratio" for line in kept):
        kept.append(_BUDGET["perplexity_ratio"])
    return tuple(kept)


def _looser(line: BudgetLine) -> BudgetLine:
    floor = _BUDGET.get(line.metric)
    return floor if floor is not None and line.limit < floor.limit else line
