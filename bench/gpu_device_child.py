"""Run by `gpu.py` first: what the device is, and what it can do at best.

    python bench/gpu_device_child.py DEVICE SCALE

Requests: ``{"do": "facts"}``, ``{"do": "ceilings"}``. The ceilings are measured through ONNX Runtime itself,
on random numbers: a copy (bytes read and written), the product of one row with a matrix (bytes read), a
product of three equal sides. SCALE divides the sizes, so that a rehearsal on a CPU is over in seconds.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from gpu_process import serve
from gpu_sessions import CPU, CUDA, Bound, cuda_versions, medians, open_graph
from onnx import ModelProto, helper, numpy_helper

from onnxforge.runtimes.diagnosis import explain
from onnxforge.runtimes.gpu_host import this_host
from onnxforge.runtimes.nvidia_driver import ask_driver

_COPIED, _ROW, _SQUARE = 1 << 30, 16384, 8192
"""Bytes of the copy, sides of the matrix that one row is multiplied with, sides of the large product."""


def facts(device: str) -> dict[str, object]:
    """Name, memory and versions. Raises RuntimeError where the provider does not start."""
    try:
        open_graph(_copy(np.float32), device)
    except Exception as error:
        raise RuntimeError(explain(CUDA if device == "cuda" else CPU, str(error))) from error
    found: dict[str, object] = {"onnxruntime": ort.__version__, "providers": ort.get_available_providers()}
    return found | {"cuda": cuda_versions() if device == "cuda" else {}, "card": card()}


def card() -> dict[str, str]:
    """What the driver says of the first GPU; empty where it knows none by name."""
    host = this_host()
    try:
        driver = ask_driver(host.open_library, host.system)
    except (OSError, AttributeError):
        return {}
    if not driver.gpus or not driver.gpus[0].name:
        return {}
    gpu = driver.gpus[0]
    found = {"name": gpu.name, "memory": f"{gpu.memory / 2**30:.0f} GiB"}
    version = Path("/sys/module/nvidia/version")
    found |= {"driver": version.read_text().strip()} if version.is_file() else {}
    return found | {"capability": ".".join(map(str, gpu.capability))}


def ceilings(device: str, scale: int) -> dict[str, float]:
    """Bytes and operations per second, medians of repeated runs."""
    kind = np.float16 if device == "cuda" else np.float32
    width = np.dtype(kind).itemsize
    rng = np.random.default_rng(0)
    side = int(_ROW / scale**0.5)
    square = int(_SQUARE / scale**0.5)
    lines = np.tile(rng.standard_normal(1 << 16, dtype=np.float32), (_COPIED // scale) >> 18)[None]
    copied = Bound(open_graph(_copy(np.float32), device), device, {"x": lines}, {"y": lines.shape})
    copy = 2 * lines.nbytes / _median(copied)
    found = {"copy_bytes_per_second": copy}
    for name, rows, side_length in (("row", 1, side), ("square", square, square)):
        weight = rng.standard_normal((side_length, side_length), dtype=np.float32).astype(kind)
        x = rng.standard_normal((rows, side_length), dtype=np.float32).astype(kind)
        session = open_graph(_product(weight), device)
        seconds = _median(Bound(session, device, {"x": x}, {"y": (rows, side_length)}))
        found[f"{name}_seconds"] = seconds
        if rows == 1:
            found["row_bytes_per_second"] = weight.nbytes / seconds
        else:
            found["operations_per_second"] = 2 * rows * side_length**2 / seconds
    return found | {"element_bytes": width}


def _median(bound: Bound) -> float:
    return medians(bound.seconds(most=30, budget=1.0))["ms"] / 1e3


def _copy(kind: type[np.floating]) -> ModelProto:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x, y = (helper.make_tensor_value_info(name, element, ["rows", "n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "copy", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _product(weight: np.ndarray) -> ModelProto:
    element = helper.np_dtype_to_tensor_dtype(weight.dtype)
    x, y = (helper.make_tensor_value_info(name, element, ["m", len(weight)]) for name in "xy")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


if __name__ == "__main__":
    device, scale = sys.argv[1], int(sys.argv[2])
    serve(lambda asked: facts(device) if asked["do"] == "facts" else ceilings(device, scale))
