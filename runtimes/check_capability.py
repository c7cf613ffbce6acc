"""Does the wheel hold machine code for this GPU?"""

from collections.abc import Sequence

from onnxforge.runtimes.gpu_check import Check
from onnxforge.runtimes.gpu_host import Host
from onnxforge.runtimes.nvidia_driver import Capability, Gpu

_NAME = "compute capability"
_OLDEST: Capability = (7, 5)
"""CUDA 13 makes no code for older GPUs (its release notes); the fp16 x int GEMM has none either."""
_CODE: dict[str, tuple[tuple[Capability, ...], tuple[Capability, ...]]] = {
    "1.31.1": (((7, 5), (8, 0), (8, 6), (8, 9)), ((9, 0), (12, 0))),
}
"""What the CUDA provider of PyPI's Linux wheel holds, as cuobjdump lists it: compute capabilities whose code
later ones of the same major number run too, and those whose code (sm_90a, sm_120a) only they run. There is no
PTX in it that the driver could translate for others."""


def check_capability(host: Host, gpus: Sequence[Gpu]) -> Check:
    """Of the first of ``gpus``, which is the one that sessions use; a fitting one behind it is named."""
    first, shown = gpus[0], _dotted(gpus[0].capability)
    known = _known_code(host)
    if _has_code(host, first.capability):
        added = f", which onnxruntime-gpu {host.version} has code for" if known else ""
        return Check(_NAME, True, f"{shown}{added}.")
    remedy = "Use another GPU, or compile for a cpu target."
    for index, gpu in enumerate(gpus):
        if _has_code(host, gpu.capability):
            remedy = f"Set CUDA_VISIBLE_DEVICES={index} ({gpu.name})."
            break
    if first.capability < _OLDEST or known is None:
        found = (
            f"{first.name} has {shown}; CUDA {host.cuda_major} is for {_dotted(_OLDEST)} (Turing) and newer."
        )
        return Check(_NAME, False, found, remedy)
    listed = ", ".join(_dotted(capability) for part in known for capability in part)
    found = f"{first.name} has {shown}; onnxruntime-gpu {host.version} from PyPI has code for {listed} only."
    return Check(_NAME, False, found, remedy)


def _has_code(host: Host, has: Capability) -> bool:
    """Where the wheel is not known, CUDA's own floor decides."""
    if host.cuda_major >= 13 and has < _OLDEST:
        return False
    known = _known_code(host)
    if known is None:
        return True
    family, alone = known
    return has in alone or any(made[0] == has[0] and made <= has for made in family)


def _known_code(host: Host) -> tuple[tuple[Capability, ...], tuple[Capability, ...]] | None:
    return _CODE.get(host.version) if host.system == "Linux" and host.cuda_major == 13 else None


def _dotted(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
