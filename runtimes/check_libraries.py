"""Are the CUDA and TensorRT libraries there that a provider links to, and which pip packages bring them?"""

from collections.abc import Sequence

from onnxforge.runtimes.gpu_check import Check
from onnxforge.runtimes.gpu_host import Host
from onnxforge.runtimes.gpu_libraries import (
    ASKED_FOR,
    CUDA_13_PACKAGES,
    Library,
    linked,
    load_libraries,
    stem,
)

_TENSORRT = ("libnvinfer", "libnvonnxparser")


def check_libraries(host: Host, provider: str, known: Sequence[str] = ()) -> tuple[Check, ...]:
    """One check for each library that ``provider`` links to or looks for and that is not among ``known``."""
    if host.system != "Linux":
        return (Check("libraries", None, f"Not looked at on {host.system}."),)
    libraries = [
        library for library in load_libraries(host, linked(host, provider)) if library.name not in known
    ]
    remedy = _remedy(host, [library.name for library in libraries if library.problem])
    checks = []
    for library in libraries:
        if not library.problem:
            checks.append(Check(library.name, True, f"{library.path or 'The loader has it'}."))
        else:
            newer = _newer_tensorrt(host, library.name)
            checks.append(Check(library.name, False, newer or _missing(library), remedy))
    return *checks, *_asked_for(host, provider)


def _asked_for(host: Host, provider: str) -> tuple[Check, ...]:
    """Those that only some kernels want: a session starts without, so what is missing is told and no more."""
    checks = []
    for library in load_libraries(host, ASKED_FOR[provider]):
        if library.problem:
            found = f"{_missing(library)} Encoders fail without it (MultiHeadAttention); decoders run."
            checks.append(Check(library.name, None, found, _remedy(host, [library.name])))
        else:
            checks.append(Check(library.name, True, f"{library.path or 'The loader has it'}."))
    return tuple(checks)


def packages_for(host: Host, checks: Sequence[Check]) -> tuple[str, ...]:
    """The pip packages of the libraries among ``checks`` that did not hold."""
    if host.cuda_major != 13:
        return ()
    names = [stem(check.name) for check in checks if check.held is False]
    return tuple(sorted({CUDA_13_PACKAGES[name] for name in names if name in CUDA_13_PACKAGES}))


def _missing(library: Library) -> str:
    if library.path:
        return f"{library.path} does not load: {library.problem}."
    if library.problem.startswith(f"{library.name}: cannot open"):
        return "Neither in Python's packages nor where the system's loader looks."
    return f"Does not load: {library.problem}."


def _newer_tensorrt(host: Host, name: str) -> str:
    """What to say where TensorRT is there in another version; empty where it is not."""
    if stem(name) not in _TENSORRT:
        return ""
    others = [
        path.name
        for folder in host.folders
        for path in sorted(folder.glob(f"tensorrt_libs/{stem(name)}.so.*"))
    ]
    if not others:
        return ""
    return f"This wheel needs {name}; installed is {others[0]} (pip install tensorrt brings version 11)."


def _remedy(host: Host, missing: Sequence[str]) -> str:
    """One command for all of them."""
    if not missing:
        return ""
    if host.cuda_major != 13:
        return f"Install CUDA {host.cuda_major}, or onnxruntime-gpu from PyPI, which is for CUDA 13."
    packages = sorted({CUDA_13_PACKAGES[stem(name)] for name in missing})
    command = f"pip install {' '.join(packages)}"
    if any(_newer_tensorrt(host, name) for name in missing):
        others = "tensorrt tensorrt_cu13 tensorrt_cu13_libs tensorrt_cu13_bindings"
        return f"pip uninstall -y {others} && {command}"
    return command
