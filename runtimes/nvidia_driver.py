"""What the NVIDIA driver says of itself and its GPUs, asked of its library, without CUDA or ONNX Runtime.

Source: CUDA Driver API, "Initialization", "Version Management", "Device Management".
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

Capability = tuple[int, int]
DRIVER_LIBRARIES = {"Linux": "libcuda.so.1", "Windows": "nvcuda.dll"}
_MAJOR, _MINOR = 75, 76
_MOST_GPUS = 64


@dataclass(frozen=True)
class Gpu:
    """One GPU that CUDA would use."""

    name: str
    memory: int
    """Bytes."""
    capability: Capability
    """Compute capability, such as (9, 0)."""

    def __str__(self) -> str:
        major, minor = self.capability
        return f"{self.name}, {self.memory / 2**30:.0f} GiB, compute capability {major}.{minor}"


@dataclass(frozen=True)
class Driver:
    """Its answers."""

    code: int
    """Of cuInit: 0, or why it does not work."""
    cuda: int
    """The newest CUDA that it takes, as 1000 * major + 10 * minor; 0 where it does not say."""
    gpus: tuple[Gpu, ...]


def ask_driver(open_library: Callable[[str], ctypes.CDLL], system: str) -> Driver:
    """Start the driver's library and list its GPUs; no GPU memory is taken and no context made.

    Raises OSError where the library is not found, AttributeError where it is not the driver's.
    """
    library = open_library(DRIVER_LIBRARIES[system])
    version = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(version)):
        version.value = 0
    code = int(library.cuInit(0))
    if code:
        return Driver(code, version.value, ())
    count = ctypes.c_int(0)
    code = int(library.cuDeviceGetCount(ctypes.byref(count)))
    gpus = tuple(_gpu(library, index) for index in range(min(count.value, _MOST_GPUS)))
    return Driver(code, version.value, gpus)


def _gpu(library: ctypes.CDLL, index: int) -> Gpu:
    device, memory = ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, 256, device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int(0)
        library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return Gpu(name.value.decode("utf-8", "replace"), memory.value, (capability[0], capability[1]))
