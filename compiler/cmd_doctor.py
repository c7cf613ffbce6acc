"""``doctor``: everything about this machine and installation that a bug report should say."""

import json
import os
import platform
import shutil
from pathlib import Path

from onnxforge.compiler.options import AsJson, Debug

_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "sve",
)  # fmt: skip
"""CPU features for which ONNX Runtime has faster kernels, as Linux spells them."""


def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Print versions, the CPU and its features, threads, providers, disk and cache folders."""
    found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for title, facts in found.items():
        print(title)
        for name, value in facts.items():
            print(f"  {name:<20} {value}")


def examine() -> dict[str, dict[str, str]]:
    """Sections of facts, all as text."""
    import onnxruntime
    import psutil

    from onnxforge.compiler.manifest import tool_versions
    from onnxforge.compiler.provider_here import starts

    model, flags = _cpu()
    installed = onnxruntime.get_available_providers()
    memory, here = psutil.virtual_memory(), Path.cwd()
    return {
        "versions": dict(tool_versions()),
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cpu": model,
            "features": " ".join(name for name in _FEATURES if name in flags) or "none known",
            "cores": f"{psutil.cpu_count(logical=False)} physical, {psutil.cpu_count()} logical",
            "cores for us": str(_usable_cores()),
            "memory": f"{memory.total / 1e9:.1f} GB, {memory.available / 1e9:.1f} GB available",
        },
        "onnxruntime": {
            "providers": " ".join(installed),
            "that start": " ".join(name for name in installed if starts(name)) or "none",
            "device": onnxruntime.get_device(),
        },
        "disk": {
            str(here): f"{shutil.disk_usage(here).free / 1e9:.1f} GB free",
            "hub cache": str(_cache("HF_HOME", ".cache/huggingface")),
            "our cache": str(_cache("XDG_CACHE_HOME", ".cache") / "onnxforge"),
        },
    }


def _cpu() -> tuple[str, frozenset[str]]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown", frozenset()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return facts.get("model name", platform.machine()), frozenset(
        facts.get("flags", facts.get("Features", "")).split()
    )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def _cache(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or Path.home() / default)
