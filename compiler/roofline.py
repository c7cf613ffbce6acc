"""The bound that the machine sets, measured on the machine: no token can be faster than its weights are read.

Decode is bound by memory: bandwidth over the bytes one token streams. Prefill and encoders are bound by
arithmetic: the matrix-multiply rate that ONNX Runtime itself reaches on a comfortable shape. (The roofline
model: Williams, Waterman, Patterson, CACM 2009.)
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.traffic import Traffic

_BYTES_PER_THREAD = 128 << 20  # four times a large last-level cache
_REPEATS = 20
_GEMM = (512, 1024, 1024)


@dataclass(frozen=True)
class Machine:
    """What this machine can do with the threads a proof uses."""

    threads: int
    read_bandwidth: float
    """Bytes per second, all threads reading at once."""
    float_rate: float
    """fp32 operations per second (two per multiply-add)."""
    integer_rate: float
    """int8 operations per second (two per multiply-add)."""

    def best(self, other: "Machine") -> "Machine":
        """The higher of two measurements of everything: what the machine can do when nobody disturbs it."""
        return Machine(
            self.threads,
            max(self.read_bandwidth, other.read_bandwidth),
            max(self.float_rate, other.float_rate),
            max(self.integer_rate, other.integer_rate),
        )


@dataclass(frozen=True)
class Roofline:
    """One line of the report: the bound, the measurement, and how much of the bound was reached."""

    test: str
    bytes_per_token: int
    """Weights, and the cache at the middle of the run; 0 where arithmetic is the bound."""
    bound: float
    """Tokens per second."""
    measured: float

    @property
    def percent(self) -> float:
        """Share of the bound reached, in percent."""
        return 100.0 * self.measured / self.bound if self.bound else 0.0


def measure_machine(count: int | None = None) -> Machine:
    """Measure with ``count`` threads, all cores by default; takes about a second on a quiet machine."""
    used = count or threads()
    return Machine(used, _read_bandwidth(used), _gemm_rate("MatMul", used), _gemm_rate("MatMulInteger", used))


def decode_roofline(test: str, traffic: Traffic, machine: Machine, depth: float, measured: float) -> Roofline:
    """The memory bound of one decode step with ``depth`` past positions on average."""
    streamed = traffic.weight_bytes + int(traffic.cache_bytes_per_position * depth)
    return Roofline(test, streamed, machine.read_bandwidth / max(streamed, 1), measured)


def compute_roofline(test: str, traffic: Traffic, machine: Machine, measured: float) -> Roofline:
    """The arithmetic bound of many tokens at once: weight multiplications only, at measured peak rates."""
    seconds = 2 * (traffic.integer_macs / machine.integer_rate + traffic.float_macs / machine.float_rate)
    return Roofline(test, 0, 1 / seconds if seconds else 0.0, measured)


def _read_bandwidth(count: int) -> float:
    blocks = [np.ones(_BYTES_PER_THREAD // 4, dtype=np.float32) for _ in range(count)]
    with ThreadPoolExecutor(count) as pool:
        # A dot product of a block with itself loads every byte once, stores nothing, and frees the lock.
        seconds = _best(lambda: list(pool.map(lambda block: np.dot(block, block), blocks)))
    return count * _BYTES_PER_THREAD / seconds


def _gemm_rate(op_type: str, count: int) -> float:
    m, k, n = _GEMM
    integer = op_type == "MatMulInteger"
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 127, (k, n)).astype(np.int8) if integer else rng.random((k, n), np.float32)
    x = rng.integers(0, 255, (m, k)).astype(np.uint8) if integer else rng.random((m, k), np.float32)
    element = TensorProto.UINT8 if integer else TensorProto.FLOAT
    result = TensorProto.INT32 if integer else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", element, [m, k])],
        [helper.make_tensor_value_info("y", result, [m, n])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = count
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * m * k * n / _best(lambda: session.run(None, {"x": x}))


def _best(work: Callable[[], object]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
