"""Machines that are not there: a root folder, packages, and a loader that knows which libraries open."""

from collections.abc import Mapping
from pathlib import Path

from onnxforge.runtimes.gpu_host import Host
from onnxforge.runtimes.nvidia_driver import Gpu

CUDA, TENSORRT, CPU = "CUDAExecutionProvider", "TensorrtExecutionProvider", "CPUExecutionProvider"
H100 = Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, (9, 0))
GPU_WHEEL = (TENSORRT, CUDA, CPU)
CUDNN = "libcudnn.so.9"
LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13")


class FakeDriver:
    """The functions of libcuda that are asked, over given answers."""

    def __init__(self, gpus=(H100,), code=0, cuda=13000, says_version=True):
        self.gpus, self.code, self.cuda, self.says_version = gpus, code, cuda, says_version
        self.initialized = False

    def cuInit(self, flags):  # noqa: N802
        assert flags == 0
        self.initialized = True
        return self.code

    def cuDriverGetVersion(self, out):  # noqa: N802
        out._obj.value = self.cuda
        return 0 if self.says_version else 1

    def cuDeviceGetCount(self, out):  # noqa: N802
        assert self.initialized
        out._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, out, index):  # noqa: N802
        out._obj.value = index
        return 0

    def cuDeviceGetName(self, out, size, device):  # noqa: N802
        out.value = self.gpus[device.value].name.encode()
        return 0

    def cuDeviceTotalMem_v2(self, out, device):  # noqa: N802
        out._obj.value = self.gpus[device.value].memory
        return 0

    def cuDeviceGetAttribute(self, out, attribute, device):  # noqa: N802
        out._obj.value = self.gpus[device.value].capability[{75: 0, 76: 1}[attribute]]
        return 0


class Loader:
    """Opens what it is told to, and remembers in which order."""

    def __init__(self, libraries: Mapping[str, object], broken: Mapping[str, str] | None = None):
        self.libraries, self.broken, self.opened = dict(libraries), broken or {}, []

    def __call__(self, name: str):
        self.opened.append(name)
        if name in self.broken:
            raise OSError(self.broken[name])
        if "/" in name and Path(name).is_file():
            return object()
        if name in self.libraries:
            return self.libraries[name]
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")


def make_host(root: Path, loader: Loader | None = None, **changes) -> Host:
    """A Linux machine below `root` with onnxruntime-gpu 1.31.1 in ``root/site``; no libraries, no driver."""
    site = root / "site"
    (site / "onnxruntime" / "capi").mkdir(parents=True, exist_ok=True)
    fields = {
        "system": "Linux",
        "machine": "x86_64",
        "python": (3, 11),
        "version": "1.31.1",
        "cuda": "13.0",
        "providers": GPU_WHEEL,
        "package": site / "onnxruntime",
        "folders": (site,),
        "variables": {},
        "root": root,
        "open_library": loader or Loader({}),
    }
    return Host(**(fields | changes))


def whole_host(root: Path, **changes) -> Host:
    """One on which all is well."""
    libraries = dict.fromkeys((*LIBRARIES, CUDNN), object()) | {"libcuda.so.1": FakeDriver()}
    write_distribution(root / "site", "onnxruntime-gpu", "1.31.1")
    return make_host(root, Loader(libraries), **changes)


def write_distribution(site: Path, name: str, version: str, top: str | None = "onnxruntime") -> None:
    """What pip leaves of a package: its metadata."""
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    if top is not None:
        (folder / "top_level.txt").write_text(f"{top}\n")


def write(root: Path, path: str, text: str = "") -> Path:
    """A file below `root`, such as ``dev/nvidia0``."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def plug_in(root: Path, vendor: str = "0x10de", kind: str = "0x030200") -> None:
    """A card on the PCI bus."""
    write(root, "sys/bus/pci/devices/0000:01:00.0/vendor", f"{vendor}\n")
    write(root, "sys/bus/pci/devices/0000:01:00.0/class", f"{kind}\n")


def load_module(root: Path, version: str = "580.65.06") -> None:
    """The driver's kernel module, as it shows itself."""
    line = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {version}  Release Build\n"
    write(root, "proc/driver/nvidia/version", line)
