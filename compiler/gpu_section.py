"""What ``doctor`` says about one provider: each check, and what to do first."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from onnxforge.compiler.provider_child import why_not_in_a_child
from onnxforge.runtimes.diagnosis import STARTS, diagnose, works
from onnxforge.runtimes.gpu_check import Check, first_failed
from onnxforge.runtimes.gpu_host import CUDA, GPU_PROVIDERS, TENSORRT

TITLES = {CUDA: "CUDA", TENSORRT: "TensorRT"}
_MARKS = {True: "ok", False: "NO", None: "-"}


def examine_provider(provider: str) -> tuple[Check, ...]:
    """The checks of ``provider``; of one that needs no GPU, only whether a session starts."""
    if provider in GPU_PROVIDERS:
        return diagnose(provider, lambda: why_not_in_a_child(provider))
    reason = why_not_in_a_child(provider)
    return (Check(STARTS, not reason, reason or "A session computes on it."),)


def as_facts(checks: Sequence[Check], told: Sequence[Check] = ()) -> dict[str, object]:
    """For JSON: ``works``, ``first`` (the check to repair first, or null) and ``checks``."""
    first = to_repair(checks, told)
    return {
        "works": works(checks),
        "first": asdict(first) if first else None,
        "checks": [asdict(check) for check in checks],
    }


def to_repair(checks: Sequence[Check], told: Sequence[Check] = ()) -> Check | None:
    """The check to repair first; none where a session starts, whatever else was found.

    Nor one of those that were ``told`` of another provider and did not keep that from starting.
    """
    if works(checks):
        return None
    return first_failed([check for check in checks if not (works(told) and check in told)])


def lines(title: str, checks: Sequence[Check], told: Sequence[Check] = ()) -> Iterator[str]:
    """For people; checks that were ``told`` already are left out."""
    yield title
    for check in checks:
        if check not in told or check.name == STARTS:
            advice = f" {check.remedy}" if check.held is not False and check.remedy else ""
            yield f"  {check.name:<22} {_MARKS[check.held]:<3} {check.found}{advice}"
    first = to_repair(checks, told)
    if first is not None:
        yield f"  {'do first':<22} {'':<3} {first.remedy or first.found}"
