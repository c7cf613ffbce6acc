"""Run by a Python with onnxruntime-gpu for bench/cuda_limits.py: what becomes of graphs of one node.

    python cuda_limits_child.py GRAPHS.json

Prints JSON: for each graph when it ended ("open", "cpu", "run", "ran") and the words. Each has a process of
its own: over libraries that compute nothing a kernel may crash.
"""

import json
import multiprocessing
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
_LENGTH = 400


def answer(text: str) -> tuple[str, str]:
    """When it ended, and the end of what was said."""
    model = onnx.parser.parse_model(HEAD + text)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=[CUDA, "CPUExecutionProvider"]
        )
    except Exception as error:
        return "open", str(error)[-_LENGTH:]
    session.disable_fallback()
    runs_on = {part.ep_name for part in session.get_provider_graph_assignment_info() if part.get_nodes()}
    if runs_on != {CUDA}:
        return "cpu", ", ".join(sorted(runs_on))
    try:
        session.run(None, dict(map(feed, model.graph.input)))
    except Exception as error:
        return "run", str(error)[-_LENGTH:]
    return "ran", ""


def feed(value: onnx.ValueInfoProto) -> tuple[str, np.ndarray]:
    """Zeros of its type and shape."""
    kind = value.type.tensor_type
    shape = [size.dim_value for size in kind.shape.dim]
    return value.name, np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))


def report(text: str, where: Connection) -> None:
    """For a process of its own."""
    where.send(answer(text))


def main() -> None:
    multiprocessing.set_start_method("spawn")
    answers = []
    for text in json.loads(Path(sys.argv[1]).read_text()):
        here, there = multiprocessing.Pipe()
        process = multiprocessing.Process(target=report, args=(text, there))
        process.start()
        there.close()
        try:
            answers.append(here.recv())
        except EOFError:
            answers.append(("crashed", ""))
        process.join()
    print(json.dumps({"version": ort.__version__, "answers": answers}))


if __name__ == "__main__":
    main()
