"""The CUDA and TensorRT libraries that a provider links to: find them and load them.

pip's NVIDIA packages put them into ``site-packages/nvidia/...``, where the system's loader does not look. A
library that is already in the process is found by its name, so they are loaded by path before ONNX Runtime
opens the provider's library:

    libonnxruntime_providers_cuda.so needs libcublas.so.13
        -> site-packages/nvidia/cu13/lib/libcublas.so.13, behind what that needs itself
        -> else by name: LD_LIBRARY_PATH, the system's folders

The order is that of ``onnxruntime.preload_dlls()``, which on Linux is not called: it writes to stdout, knows
nothing of TensorRT, looks into one folder only, and loads libraries that the provider does not link to.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnxruntime

from onnxforge.runtimes.elf_needed import needed_libraries
from onnxforge.runtimes.gpu_host import CUDA, GPU_PROVIDERS, TENSORRT, Host, this_host

_PROVIDER_FILES = {
    CUDA: "libonnxruntime_providers_cuda.so",
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
}
_USUAL = {
    CUDA: ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13"),
    TENSORRT: (
        "libcublas.so.13",
        "libnvinfer.so.10",
        "libnvonnxparser.so.10",
        "libcudart.so.13",
        "libcudnn.so.9",
    ),
}
"""What the providers of onnxruntime-gpu 1.31.1 link to: what another wheel is told before it is replaced."""
ASKED_FOR = {CUDA: ("libcudnn.so.9",), TENSORRT: ()}
"""What a provider does not link to and looks for by name when a kernel needs it: MultiHeadAttention,
convolutions and some reductions fail without cuDNN, and nothing else does. (cuFFT is such a one too, for
operators of signals that no transformer here has.)"""
CUDA_13_PACKAGES = {
    "libcublas": "nvidia-cublas~=13.0",
    "libcublasLt": "nvidia-cublas~=13.0",
    "libcudart": "nvidia-cuda-runtime~=13.0",
    "libcudnn": "nvidia-cudnn-cu13~=9.0",
    "libcufft": "nvidia-cufft~=12.0",
    "libcurand": "nvidia-curand~=10.0",
    "libnvinfer": "tensorrt-cu13==10.16.1.11",
    "libnvonnxparser": "tensorrt-cu13==10.16.1.11",
    "libnvrtc": "nvidia-cuda-nvrtc~=13.0",
}
"""The pip package of each. A plain ``pip install tensorrt`` is version 11, whose libraries are named so."""


@dataclass(frozen=True)
class Library:
    """One that was looked for."""

    name: str
    path: str
    """Where it lies; empty where the system's loader found it and does not say where, or nobody did."""
    problem: str
    """Why it does not load; empty where it does."""


def prepare(provider: str) -> None:
    """Load what ``provider`` links to from pip's packages, once; nothing to do for the CPU's.

    What is missing is left to ONNX Runtime to miss, and to :mod:`onnxforge.runtimes.diagnosis` to tell.
    """
    if provider in GPU_PROVIDERS:
        _prepare(provider)


@cache
def _prepare(provider: str) -> None:
    host = this_host()
    if host.system == "Windows" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    elif host.system == "Linux" and provider in host.providers:
        for name in dict.fromkeys((CUDA, provider)):
            load_libraries(host, (*linked(host, name), *ASKED_FOR[name]))


def linked(host: Host, provider: str) -> tuple[str, ...]:
    """NVIDIA's libraries that the library of ``provider`` links to, without the driver's."""
    try:
        needed = needed_libraries(host.package / "capi" / _PROVIDER_FILES[provider])
    except (OSError, ValueError):
        return _USUAL[provider]
    return tuple(name for name in needed if stem(name) in CUDA_13_PACKAGES)


def load_libraries(host: Host, names: Sequence[str]) -> tuple[Library, ...]:
    """Load each of ``names``, and in front of it what it needs of the others."""
    done: dict[str, Library] = {}
    for name in names:
        _load(host, name, done)
    return tuple(done[name] for name in names)


def _load(host: Host, name: str, done: dict[str, Library]) -> None:
    if name in done:
        return
    done[name] = Library(name, "", "is loaded by what it needs itself")  # two that need one another
    path = next(_in_packages(host, name), None)
    problem = ""
    if path is not None:
        for other in _needed_of(path):
            _load(host, other, done)
        try:
            host.open_library(str(path))
        except OSError as error:
            problem = str(error)
        else:
            done[name] = Library(name, str(path), "")
            return
    try:
        host.open_library(name)
    except OSError as error:
        done[name] = Library(name, str(path or ""), problem or str(error))
    else:
        done[name] = Library(name, _mapped(host.root, name), "")


def _needed_of(path: Path) -> tuple[str, ...]:
    try:
        return tuple(name for name in needed_libraries(path) if stem(name) in CUDA_13_PACKAGES)
    except (OSError, ValueError):
        return ()


def _in_packages(host: Host, name: str) -> Iterator[Path]:
    """Where pip's packages have it: CUDA 13's share one folder, older ones and cuDNN have one each."""
    for folder in host.folders:
        for inside in (f"nvidia/cu{host.cuda_major}/lib", "nvidia/*/lib", "tensorrt_libs"):
            yield from sorted(path for path in folder.glob(f"{inside}/{name}") if path.is_file())


def stem(name: str) -> str:
    """``libcublas`` of ``libcublas.so.13``."""
    return name.split(".so", 1)[0]


def _mapped(root: Path, name: str) -> str:
    """Where a loaded library lies, by the process's map of its memory; empty where it does not say."""
    start = f"/{stem(name)}.so"
    with contextlib.suppress(OSError):
        for line in (
            (root / "proc" / "self" / "maps").read_text(encoding="utf-8", errors="replace").splitlines()
        ):
            _, slash, rest = line.partition("/")
            if slash and start in f"/{rest}":
                return f"/{rest}"
    return ""
