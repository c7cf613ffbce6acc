"""One ONNX Runtime session for an artifact, on the provider its manifest names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnxruntime

from onnxforge.runtimes.artifact import DECODER_TASK, Manifest
from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.gpu_host import GPU_PROVIDERS
from onnxforge.runtimes.gpu_libraries import prepare

CUDA = "CUDAExecutionProvider"
CUDA_GRAPH = "enable_cuda_graph"
"""The provider option that lets runs be recorded."""
_SHORT_NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": CUDA,
    "tensorrt": "TensorrtExecutionProvider",
}
_CPU = ("CPUExecutionProvider",)
_NEXT = {"CPUExecutionProvider": (), "TensorrtExecutionProvider": ("CUDAExecutionProvider", *_CPU)}
"""By provider, who takes what it has no kernel for; the CPU's provider for all others."""
_CACHES = ("trt_engine_cache", "trt_timing_cache")


def provider_name(name: str) -> str:
    """The full provider name for ``cpu``, ``cuda``, ``tensorrt`` or a full name."""
    return _SHORT_NAMES.get(name.lower(), name)


def device_of(provider: str) -> str:
    """Where tensors of a provider live: ``cuda`` or ``cpu``."""
    return "cuda" if provider in GPU_PROVIDERS else "cpu"


def options_for(provider: str, manifest: Manifest) -> Mapping[str, str]:
    """The provider options that `manifest` gives, where `provider` is the one it gives them for.

    CUDA graphs are left out: a session that may record needs runs that say whether they do (`load`).
    TensorRT's engines take minutes to build: they are kept in the user's cache folder, unless the manifest
    says where else.
    """
    if provider != manifest.provider or not manifest.provider_options:
        return {}
    said = {key: value for key, value in manifest.provider_options.items() if key != CUDA_GRAPH}
    caches = {f"{key}_path" for key in _CACHES if said.get(f"{key}_enable") == "1"}
    return {**dict.fromkeys(sorted(caches), str(_cache_folder())), **said}


def cuda_graph_hindrance(manifest: Manifest, provider: str) -> str | None:
    """Why steps of the artifact's own graph cannot be recorded as CUDA graphs on `provider`, or nothing."""
    reasons = (
        (provider != CUDA, f"it runs on {provider}"),
        (manifest.task != DECODER_TASK, "it is an encoder, and each batch has another size"),
        (not manifest.shared_cache, "its cache grows at every step, and what is recorded has one size"),
    )
    return next((reason for applies, reason in reasons if applies), None)


def provider_chain(provider: str, available: Sequence[str]) -> list[str]:
    """`provider`, and those of the installed ones that take the operators it has no kernel for, in order."""
    return [provider, *(name for name in _NEXT.get(provider, _CPU) if name in available)]


def open_session(
    graph: Path,
    provider: str,
    entries: Mapping[str, str],
    threads: int | None,
    options: Mapping[str, str] | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """Load a graph.

    `entries` are session config entries; `threads` is the number of intra-op threads, None for one per core;
    `options` are those of the provider; `profile` is how the file begins that a profile is written to.
    Raises RequestError when this installation lacks the provider, ArtifactError when the graph does not load.
    """
    if threads is not None:
        _check_threads(threads)
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise RequestError(_unfit(graph, provider, f"This ONNX Runtime offers {', '.join(available)}."))
    prepare(provider)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    for key, value in sorted(entries.items()):
        settings.add_session_config_entry(key, value)
    if profile is not None:
        settings.enable_profiling, settings.profile_file_prefix = True, str(profile)
    chain = provider_chain(provider, available)
    own = [dict(options or {}), *({} for _ in chain[1:])]
    try:
        # Without a fallback: ONNX Runtime would print on stdout why CUDA failed, and go on with the CPU.
        session = onnxruntime.InferenceSession(
            str(graph), settings, providers=chain, provider_options=own, enable_fallback=False
        )
    except Exception as error:
        # What is wrong with a graph has classes of ONNX Runtime's own; providers raise this one.
        if provider in GPU_PROVIDERS and isinstance(error, RuntimeError):
            raise RequestError(_unfit(graph, provider, str(error))) from error
        raise ArtifactError(f"{graph}: ONNX Runtime cannot load it: {error}") from error
    if session.get_providers()[0] != provider:
        raise RequestError(_unfit(graph, provider, f"ONNX Runtime started {session.get_providers()[0]}."))
    return session


def _unfit(graph: Path, provider: str, reason: str) -> str:
    """What to tell where a session does not start: the checks behind it take part of a second."""
    from onnxforge.runtimes.diagnosis import explain

    why = explain(provider, reason)
    return (
        f"{graph}: needs {provider}, which does not work here. {why} See `onnxforge doctor`, or pass "
        "provider='cpu' if the artifact was compiled for it."
    )


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onnxforge" / "tensorrt"
    root.mkdir(parents=True, exist_ok=True)
    return root


def _check_threads(threads: object) -> None:
    """ONNX Runtime starts as many threads as it is told, and with very many it never comes back."""
    cores = os.cpu_count() or 1
    most = max(64, 4 * cores)
    if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= most:
        raise RequestError(
            f"threads is {threads!r}; pass a whole number from 1 to {most} (64, or 4 for each of this "
            f"machine's {cores} cores if that is more), or None for one per core."
        )


def new_run_options(graph_id: int = -1) -> onnxruntime.RunOptions:
    """Run options of one request; quiet, since ONNX Runtime would print an interrupted run as an error.

    Runs with a `graph_id` of 0 or more are recorded as a CUDA graph, if the session does that at all.
    """
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    # Without this entry (-1: no graph capture) onnxruntime's Python layer looks for it in vain before every
    # run, and the exception behind that costs more than the rest of a token step's overhead.
    options.add_run_config_entry("gpu_graph_id", str(graph_id))
    return options
