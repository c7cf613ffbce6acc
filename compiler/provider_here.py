"""Which execution provider can work on this machine, asked of ONNX Runtime itself."""

from functools import cache

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from onnxforge.compiler.targets import CPU
from onnxforge.runtimes.gpu_libraries import prepare


def stand_in(provider: str) -> str:
    """``provider`` where it works here, else the CPU's: who calls says so to the reader of the result."""
    return provider if provider == CPU or starts(provider) else CPU


@cache
def starts(provider: str) -> bool:
    """Whether it works: an installed provider may still lack its libraries or its device."""
    return not why_not(provider)


def why_not(provider: str) -> str:
    """Why no session computes on ``provider`` here, as far as ONNX Runtime says; empty where one does."""
    available = ort.get_available_providers()
    if provider not in available:
        return f"This ONNX Runtime offers {', '.join(available)}."
    prepare(provider)
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[provider], enable_fallback=False
        )
        if session.get_providers()[0] != provider:
            return f"ONNX Runtime started {session.get_providers()[0]} in its place."
        # A kernel without code for this GPU fails only here.
        session.run(None, {"x": np.ones(1, np.float32)})
    except Exception as error:
        return str(error) or type(error).__name__
    return ""
