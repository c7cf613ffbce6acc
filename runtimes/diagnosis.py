"""Why a GPU provider does not work here: which of GPU, driver, wheel and libraries is missing."""

import re
from collections.abc import Callable, Sequence

from onnxforge.runtimes.check_gpu import check_gpu
from onnxforge.runtimes.check_libraries import check_libraries, packages_for
from onnxforge.runtimes.check_wheel import check_wheel
from onnxforge.runtimes.gpu_check import Check, first_failed
from onnxforge.runtimes.gpu_host import CUDA, GPU_PROVIDERS, Host, this_host

STARTS = "starts"


def diagnose(provider: str, start: Callable[[], str], host: Host | None = None) -> tuple[Check, ...]:
    """Everything that ``provider`` (CUDA's or TensorRT's) needs, in the order in which to repair it.

    From below: without a GPU no wheel helps, without the wheel no library. ``start`` tries a session and says
    why it does not start, or nothing; it is called only where the wheel has the provider, and then always,
    since it has the last word.
    """
    host = host or this_host()
    libraries: tuple[Check, ...] = check_libraries(host, CUDA)
    if provider != CUDA:
        needed = tuple(
            check for check in libraries if check.held is not None
        )  # it may link to what CUDA may lack
        libraries = (*needed, *check_libraries(host, provider, [check.name for check in needed]))
    wheel = check_wheel(host, provider, packages_for(host, libraries))
    return *check_gpu(host), wheel, *libraries, _started(wheel, start)


def works(checks: Sequence[Check]) -> bool:
    """Whether a session starts: what the other checks say is then of no matter."""
    return any(check.name == STARTS and check.held for check in checks)


def explain(provider: str, reason: str, host: Host | None = None) -> str:
    """In two or three sentences why a session did not start on ``provider``, and what to do first.

    ``reason`` is what ONNX Runtime said; it is told where nothing else is found wrong.
    """
    if provider not in GPU_PROVIDERS:
        return reason
    checks = diagnose(provider, lambda: reason, host)
    failed = first_failed([check for check in checks if check.name != STARTS])
    if failed is None:
        return f"{short_reason(reason)} GPU, driver, wheel and libraries look right."
    about = "" if failed.name in ("GPU", "driver", "wheel") else f"{failed.name}: "
    remedy = failed.remedy if failed.remedy.endswith(".") else f"{failed.remedy}."
    return f"{about}{failed.found} {remedy}"


def short_reason(text: str) -> str:
    """What ONNX Runtime says of a failure of CUDA or of the loader, without where in its sources that was."""
    found = re.search(r"CUDA failure \d+: [^;]+|(?<=with error: )[^\n]+", text)
    said = found[0].strip() if found else text.strip()
    return said if said.endswith(".") else f"{said}."


def _started(wheel: Check, start: Callable[[], str]) -> Check:
    if not wheel.held:
        return Check(STARTS, None, "Not tried: the wheel has no such provider.")
    reason = start()
    if not reason:
        return Check(STARTS, True, "A session computes on it.")
    remedy = "Repair what failed above; if nothing did, report it with all of this."
    return Check(STARTS, False, short_reason(reason), remedy)
