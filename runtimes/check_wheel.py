"""Does the installed ONNX Runtime contain the GPU's provider, and is it the only one?

``onnxruntime`` and ``onnxruntime-gpu`` are two distributions of one module: the one installed last has
written over the files of the other, and removing either takes files from both.
"""

from importlib.metadata import Distribution, distributions

from onnxforge.runtimes.gpu_check import Check
from onnxforge.runtimes.gpu_host import Host

GPU_WHEEL = '"onnxruntime-gpu>=1.31"'
_PLATFORMS = {("Linux", "x86_64"), ("Windows", "AMD64")}
_PYTHONS = ((3, 11), (3, 14))
"""Wheels of onnxruntime-gpu 1.31.1 on PyPI."""


def check_wheel(host: Host, provider: str, packages: tuple[str, ...]) -> Check:
    """Whether ``provider`` is there; ``packages`` are CUDA's that are missing, to install with the wheel."""
    installed = _installed(host)
    shown = " and ".join(installed) or f"onnxruntime {host.version}"
    names = " ".join(name.split(" ")[0] for name in installed) or "onnxruntime"
    install = " ".join(("pip install", GPU_WHEEL, *packages))
    repair = f"pip uninstall -y {names} && {install}"
    if provider in host.providers:
        built = f", built for CUDA {host.cuda}" if host.cuda else ""
        if len(installed) < 2:
            return Check("wheel", True, f"{shown}{built}.")
        found = f"{shown}, two distributions of one module{built}: an update of either breaks both."
        return Check("wheel", True, found, f"Have only one: {repair}")
    if problem := _no_wheel(host):
        return Check("wheel", False, problem, "Compile for a cpu target.")
    found = f"{shown} has no {provider} (it has {', '.join(host.providers)})."
    if len(installed) > 1:
        found = f"{shown} are two distributions of one module, and what is left has no {provider}."
    return Check("wheel", False, found, f"Replace it: {repair}")


def _no_wheel(host: Host) -> str:
    """Why PyPI has no onnxruntime-gpu for this Python; empty where it has."""
    if (host.system, host.machine) not in _PLATFORMS:
        return f"PyPI has no onnxruntime-gpu for {host.system} on {host.machine}."
    first, last = _PYTHONS
    if not first <= host.python <= last:
        here, oldest, newest = (".".join(map(str, version)) for version in (host.python, first, last))
        return f"onnxruntime-gpu is for Python {oldest} to {newest}; this is {here}."
    return ""


def _installed(host: Host) -> list[str]:
    """The distributions whose files are those of the imported module, as ``name version``."""
    found = set()
    for distribution in distributions(path=[str(host.package.parent)]):
        name = distribution.metadata["Name"] or ""
        if name.startswith(("onnxruntime", "ort-")) and _is_the_module(distribution):
            found.add(f"{name} {distribution.version}")
    return sorted(found)


def _is_the_module(distribution: Distribution) -> bool:
    """Not onnxruntime-genai, for one, which has a module of its own."""
    top = distribution.read_text("top_level.txt")
    if top is not None:
        return "onnxruntime" in top.split()
    return any(file.parts == ("onnxruntime", "__init__.py") for file in distribution.files or ())
