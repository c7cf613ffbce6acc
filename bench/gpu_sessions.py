"""Sessions of `gpu.py`'s workers with their tensors on the device: what a kernel takes, without copies."""

import ctypes
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
_PROVIDERS = {"cuda": CUDA, "cpu": CPU}
_CUDART = ("libcudart.so.13", "libcudart.so.12")
_CAPTURED = "gpu_graph_id"


def open_graph(
    model: onnx.ModelProto,
    device: str,
    entries: Mapping[str, str] | None = None,
    options: Mapping[str, str] | None = None,
    optimized: str | None = None,
) -> ort.InferenceSession:
    """A session on ``device`` (cuda or cpu). ``optimized`` names the file that the rewritten graph goes to.

    Raises RuntimeError where the provider did not start: ONNX Runtime would fall back to the CPU in silence.
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    for key, value in (entries or {}).items():
        settings.add_session_config_entry(key, value)
    if optimized:
        settings.optimized_model_filepath = optimized
    first = (_PROVIDERS[device], dict(options or {}))
    chain = [first] if device == "cpu" else [first, (CPU, {})]
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=chain, enable_fallback=False
    )
    if session.get_providers()[0] != _PROVIDERS[device]:
        raise RuntimeError(f"{_PROVIDERS[device]} did not start: libraries, driver or device are missing")
    return session


@dataclass
class Bound:
    """A session with inputs and outputs in the device's memory, ready to run again and again."""

    session: ort.InferenceSession
    device: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, tuple[int, ...]]
    results: dict[str, ort.OrtValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._io = self.session.io_binding()
        kinds = {item.name: item.type for item in self.session.get_outputs()}
        self._fed = {n: ort.OrtValue.ortvalue_from_numpy(a, self.device, 0) for n, a in self.inputs.items()}
        for name, value in self._fed.items():
            self._io.bind_ortvalue_input(name, value)
        for name, shape in self.outputs.items():
            kind = np.float16 if kinds[name] == "tensor(float16)" else np.float32
            self.results[name] = ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self.device, 0)
            self._io.bind_ortvalue_output(name, self.results[name])

    def run(self, options: ort.RunOptions) -> None:
        """One run; it is over when this returns."""
        self.session.run_with_iobinding(self._io, options)
        self._io.synchronize_outputs()

    def poison(self, name: str) -> None:
        """Fill an output with NaN."""
        value = self.results[name]
        kind = np.float16 if value.data_type() == "tensor(float16)" else np.float32
        value.update_inplace(np.full(value.shape(), np.nan, kind))

    def seconds(self, most: int, budget: float, graph: int = -1) -> list[float]:
        """Seconds of up to ``most`` runs, five at least, as many as fit into ``budget`` seconds.

        Where the session allows CUDA graphs, ``graph`` is a number for this set of shapes, under which a run
        is recorded and then replayed; -1 records nothing.
        """
        options = ort.RunOptions()
        options.log_severity_level = 4
        options.add_run_config_entry(_CAPTURED, str(graph))
        self.run(options)
        self.run(options)
        found: list[float] = []
        begun = time.perf_counter()
        while len(found) < most and (len(found) < 5 or time.perf_counter() - begun < budget):
            started = time.perf_counter()
            self.run(options)
            found.append(time.perf_counter() - started)
        return found


def memory_used(device: str) -> int:
    """Bytes of the device's memory that are taken, by anybody; 0 on the CPU or where it cannot be asked."""
    runtime = _runtime() if device == "cuda" else None
    if runtime is None:
        return 0
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    failed = runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    return 0 if failed else total.value - free.value


def cuda_versions() -> dict[str, str]:
    """Of the CUDA libraries that this process has, and of the most that the driver can do."""
    found, runtime = {}, _runtime()
    for name in ("cudaRuntimeGetVersion", "cudaDriverGetVersion"):
        number = ctypes.c_int()
        if runtime is not None and not getattr(runtime, name)(ctypes.byref(number)):
            found[name[4:-10].lower()] = f"{number.value // 1000}.{number.value % 1000 // 10}"
    return found


def _runtime() -> ctypes.CDLL | None:
    for name in _CUDART:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def medians(samples: Sequence[float]) -> dict[str, float]:
    """Median and the quarters around it, of seconds, in milliseconds."""
    low, middle, high = (float(value) * 1e3 for value in np.percentile(samples, (25, 50, 75)))
    return {"ms": middle, "ms_25": low, "ms_75": high, "runs": len(samples)}
