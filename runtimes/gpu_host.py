"""What the checks of a GPU setup look at: this machine and this Python, or those of a test."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnxruntime

CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
GPU_PROVIDERS = (CUDA, TENSORRT)


@dataclass(frozen=True)
class Host:
    """Where to look, and how to open a shared library."""

    system: str
    """``Linux``, ``Windows`` or ``Darwin``."""
    machine: str
    """The processor, such as ``x86_64``."""
    python: tuple[int, int]
    version: str
    """Of the onnxruntime module that Python imports."""
    cuda: str
    """The CUDA version that this module was built for, such as ``13.0``; empty: none, or not said."""
    providers: tuple[str, ...]
    """The providers that it offers."""
    package: Path
    """Its folder."""
    folders: tuple[Path, ...]
    """Where Python looks for packages, in order."""
    variables: Mapping[str, str]
    """Of the environment."""
    root: Path
    """The folder in which ``proc``, ``sys`` and ``dev`` are."""
    open_library: Callable[[str], ctypes.CDLL]
    """A name for the system's loader, or a path. Raises OSError."""

    @property
    def cuda_major(self) -> int:
        """Of the module's CUDA; 13, onnxruntime-gpu's on PyPI since 1.27, where the module says nothing."""
        major = self.cuda.split(".", 1)[0]
        return int(major) if major.isdigit() else 13


def this_host() -> Host:
    """The machine and the Python that this runs on."""
    return Host(
        system=platform.system(),
        machine=platform.machine(),
        python=(sys.version_info.major, sys.version_info.minor),
        version=str(onnxruntime.__version__),
        cuda=str(getattr(onnxruntime, "cuda_version", "") or ""),
        providers=tuple(onnxruntime.get_available_providers()),
        package=Path(str(onnxruntime.__file__)).parent,
        folders=tuple(dict.fromkeys(Path(entry) for entry in sys.path if entry and Path(entry).is_dir())),
        variables=dict(os.environ),
        root=Path("/"),
        open_library=ctypes.CDLL,
    )
