"""Which execution provider can work on this machine, asked of ONNX Runtime itself."""

from functools import cache

import onnxruntime as ort
from onnx import TensorProto, helper

from onnxforge.compiler.targets import CPU


def stand_in(provider: str) -> str:
    """``provider`` where it works here, else the CPU's: who calls says so to the reader of the result."""
    return provider if provider == CPU or starts(provider) else CPU


@cache
def starts(provider: str) -> bool:
    """Whether it works: an installed provider may still lack its libraries or its device."""
    if provider not in ort.get_available_providers():
        return False
    numbers = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", numbers[:1], numbers[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
    except Exception:
        return False
    return bool(session.get_providers()[0] == provider)
