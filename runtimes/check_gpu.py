"""Is there an NVIDIA GPU that this process may use, does its driver work, and is it new enough?

Linux shows a card and a kernel module without the driver's library, which tells a missing driver from none:

    library of the driver? -- no --> card or kernel module seen? -- no --> no GPU
            |                                     +-- yes --> no such library, or a container hides it
         cuInit --> code --> no device, or what the driver says is wrong with it
            |
         GPUs, newest CUDA, compute capability
"""

import re
from dataclasses import dataclass
from pathlib import Path

from onnxforge.runtimes.check_capability import check_capability
from onnxforge.runtimes.gpu_check import Check
from onnxforge.runtimes.gpu_host import Host
from onnxforge.runtimes.nvidia_driver import DRIVER_LIBRARIES, Driver, ask_driver

_DRIVER_OF = {12: "525", 13: "580"}
"""The oldest NVIDIA driver for each CUDA (CUDA Toolkit release notes, "CUDA Driver")."""
_NO_DEVICE = 100
_INIT = {
    2: ("is out of memory", "End other processes on the GPU."),
    34: (
        "is the CUDA toolkit's stand-in for linking, not the driver's",
        "Take the toolkit's folder 'stubs' off LD_LIBRARY_PATH.",
    ),
    46: ("cannot have the GPU", "Another process uses it exclusively: see nvidia-smi."),
    802: (
        "says that the system is not ready",
        "With NVSwitch, start the Fabric Manager: systemctl start nvidia-fabricmanager.",
    ),
    803: (
        "and the kernel module are of different versions",
        "Restart the machine after an update of the driver; in a container, leave the driver's libraries out "
        "of the image and start it with --gpus all.",
    ),
    804: (
        "is of a CUDA compatibility package that does not work with this GPU",
        "Remove the package cuda-compat or its folder from LD_LIBRARY_PATH, and update the driver.",
    ),
    999: (
        "does not say why",
        "Load the module that CUDA needs: nvidia-modprobe -u -c=0. After a suspend: rmmod nvidia_uvm && "
        "modprobe nvidia_uvm. Or restart the machine.",
    ),
}
"""Of cuInit's codes (CUDA Driver API, CUresult): what is wrong with the driver's library, what to do."""


@dataclass(frozen=True)
class _Traces:
    """What Linux shows of NVIDIA without its library."""

    card: bool
    module: str
    """Version of the loaded kernel module; empty: none."""
    nodes: bool
    container: bool


def check_gpu(host: Host) -> tuple[Check, ...]:
    """GPU, driver and compute capability, in the order in which to repair them."""
    if host.system not in DRIVER_LIBRARIES:
        return (Check("GPU", False, f"CUDA does not exist for {host.system}.", "Compile for a cpu target."),)
    traces = _traces(host.root)
    try:
        driver = ask_driver(host.open_library, host.system)
    except OSError as error:
        return _without_library(host, traces, str(error))
    except AttributeError as error:
        found = f"{DRIVER_LIBRARIES[host.system]} is not the NVIDIA driver's: {error}."
        return _broken(found, "Find out where it comes from: ldconfig -p, LD_LIBRARY_PATH.")
    if driver.code not in (0, _NO_DEVICE):
        what, remedy = _INIT.get(driver.code, ("refuses to start", "Look for that code of cuInit."))
        found = f"{DRIVER_LIBRARIES[host.system]} {what} (cuInit: {driver.code}{_version(traces)})."
        return _broken(found, remedy)
    if not driver.gpus:
        return _no_gpu(host, traces)
    gpu = Check("GPU", True, "; ".join(map(str, driver.gpus)) + ".")
    return gpu, _new_enough(host, driver, traces), check_capability(host, driver.gpus)


def _without_library(host: Host, traces: _Traces, error: str) -> tuple[Check, ...]:
    name = DRIVER_LIBRARIES[host.system]
    if host.system == "Linux" and not error.startswith(f"{name}: cannot open"):
        return _broken(f"{name} does not load: {error}.", "Repair the NVIDIA driver.")
    if traces.module and traces.container:
        return _hidden(f"Driver {traces.module} runs on this machine, and this container has no {name}.")
    if traces.module:
        found = f"The kernel module of driver {traces.module} runs, and there is no {name}."
        package = f"libnvidia-compute-{traces.module.split('.')[0]} on Ubuntu, nvidia-driver-cuda on Fedora"
        return _broken(found, f"Install the driver's libraries for CUDA ({package}).")
    if traces.card:
        wanted = _DRIVER_OF.get(host.cuda_major, "current")
        found = f"There is an NVIDIA card, and no driver for it: no {name}, no kernel module."
        return _broken(found, f"Install the NVIDIA driver, version {wanted} or newer.")
    return _none(f"No NVIDIA card, no driver ({name}).")


def _no_gpu(host: Host, traces: _Traces) -> tuple[Check, ...]:
    """The driver's library is there, and lists no GPU."""
    visible = host.variables.get("CUDA_VISIBLE_DEVICES")
    there = traces.module or host.system != "Linux"
    if there and visible is not None and not re.match(r"\s*0\b", visible):
        found = f"CUDA_VISIBLE_DEVICES is {visible!r}, which leaves no GPU to this process."
        return _unasked(Check("GPU", False, found, "Set it to a GPU's number (0 is the first), or unset it."))
    if host.system == "Linux" and not traces.nodes and traces.module:
        return _hidden(f"Driver {traces.module} runs on this machine, and there is no /dev/nvidia0 here.")
    if host.system == "Linux" and traces.card and not traces.module:
        found = "There is an NVIDIA card, and the driver's kernel module is not loaded."
        return _broken(found, "Load it: modprobe nvidia. If that fails, install the driver anew.")
    return _none("The NVIDIA driver lists no GPU.")


def _none(found: str) -> tuple[Check, ...]:
    return _unasked(
        Check("GPU", False, found, "Use a machine with an NVIDIA GPU, or compile for a cpu target.")
    )


def _hidden(found: str) -> tuple[Check, ...]:
    remedy = (
        "Give the GPU to the container: docker run --gpus all (NVIDIA Container Toolkit), or ask for "
        "nvidia.com/gpu in Kubernetes."
    )
    return _unasked(Check("GPU", False, found, remedy))


def _unasked(gpu: Check) -> tuple[Check, ...]:
    return gpu, Check("driver", None, "Not asked: no GPU.")


def _broken(found: str, remedy: str) -> tuple[Check, ...]:
    return Check("driver", False, found, remedy), Check("GPU", None, "Not asked: the driver does not work.")


def _new_enough(host: Host, driver: Driver, traces: _Traces) -> Check:
    major = host.cuda_major
    shown = f"CUDA {driver.cuda // 1000}.{driver.cuda % 1000 // 10}{_version(traces)}"
    if driver.cuda >= 1000 * major:
        return Check("driver", True, f"For up to {shown}.")
    wanted = _DRIVER_OF.get(major, "current")
    remedy = f"Update the NVIDIA driver to version {wanted} or newer."
    return Check(
        "driver",
        False,
        f"The NVIDIA driver is for up to {shown}; onnxruntime-gpu needs CUDA {major}.",
        remedy,
    )


def _version(traces: _Traces) -> str:
    return f", driver {traces.module}" if traces.module else ""


def _traces(root: Path) -> _Traces:
    """Works on any system: what is not there is not seen."""
    wsl = (root / "dev" / "dxg").exists()
    return _Traces(
        card=wsl or _on_the_bus(root / "sys" / "bus" / "pci" / "devices"),
        module=_module(root / "proc" / "driver" / "nvidia" / "version"),
        nodes=wsl or (root / "dev" / "nvidia0").exists(),
        container=any((root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
        or _says_container(root / "proc" / "1" / "cgroup"),
    )


def _on_the_bus(devices: Path) -> bool:
    """Whether a display controller (class 03) of NVIDIA (0x10de) is on the PCI bus."""
    for device in sorted(devices.glob("*")):
        if _text(device / "vendor") == "0x10de" and _text(device / "class").startswith("0x03"):
            return True
    return False


def _module(path: Path) -> str:
    """Its version, from a line as ``NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun``."""
    found = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", _text(path))
    return found[1] if found else ""


def _says_container(path: Path) -> bool:
    return any(word in _text(path) for word in ("docker", "kubepods", "containerd", "libpod"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
