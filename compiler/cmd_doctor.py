"""``doctor``: everything about this machine and installation that a bug report should say."""

import json
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from onnxforge.compiler.options import AsJson, Debug

Provider = Annotated[
    str | None,
    typer.Option(
        help="Only this provider (cpu, cuda, tensorrt or a full name); exit code 2 if it does not work.",
        show_default=False,
    ),
]

_FEATURES = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "sve",
)  # fmt: skip
"""CPU features for which ONNX Runtime has faster kernels, as Linux spells them."""


def doctor(provider: Provider = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Print versions, the CPU and its features, providers, disk and caches, what CUDA and TensorRT lack."""
    from onnxforge.compiler.gpu_section import TITLES, as_facts, examine_provider, lines
    from onnxforge.runtimes.diagnosis import works
    from onnxforge.runtimes.session import provider_name

    asked = [provider_name(provider)] if provider else list(TITLES)
    checks = {name: examine_provider(name) for name in asked}
    facts = {} if provider else examine([name for name in asked if works(checks[name])])
    first = checks[asked[0]]
    told = {name: () if found is first else first for name, found in checks.items()}
    if as_json:
        sections = {TITLES.get(name, name): as_facts(found, told[name]) for name, found in checks.items()}
        print(json.dumps({**facts, **sections}, indent=2))
    else:
        for title, section in facts.items():
            print(title)
            for name, value in section.items():
                print(f"  {name:<20} {value}")
        for name, found in checks.items():
            print("\n".join(lines(TITLES.get(name, name), found, told[name])))
    if provider and not works(first):
        raise typer.Exit(2)


def examine(gpu_providers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Sections of facts, all as text; ``gpu_providers`` are those on a GPU that work."""
    import onnxruntime
    import psutil

    from onnxforge.compiler.manifest import tool_versions
    from onnxforge.compiler.provider_here import starts
    from onnxforge.runtimes.gpu_host import GPU_PROVIDERS

    model, flags = _cpu()
    installed = onnxruntime.get_available_providers()
    others = [name for name in installed if name not in GPU_PROVIDERS and starts(name)]
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
            "that start": " ".join((*gpu_providers, *others)) or "none",
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
