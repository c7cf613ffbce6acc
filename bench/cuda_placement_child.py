"""Run by a Python with onnxruntime-gpu for bench/cuda_placement.py: who ran what, and what is copied.

    python cuda_placement_child.py GRAPH [KEY=VALUE ...]

Prints JSON: for each graph in the file its Memcpy nodes as [value, direction], and the provider of each node
by name, as ONNX Runtime assigned it before its last rewriting.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
SUFFIX = f"_{CUDA}"


def copies(graph: onnx.GraphProto, path: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Per graph: of which value, and to where."""
    ways = {"MemcpyFromHost": "to the GPU", "MemcpyToHost": "to the CPU"}
    yield path, [(n.input[0].removesuffix(SUFFIX), ways[n.op_type]) for n in graph.node if n.op_type in ways]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from copies(attribute.g, f"{path}/{node.op_type}.{attribute.name}")


def main() -> None:
    path, *entries = sys.argv[1:]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry in (*entries, "session.record_ep_graph_assignment_info=1"):
        options.add_session_config_entry(*entry.split("=", 1))
    with tempfile.TemporaryDirectory() as folder:
        weights = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(weights, "weights")
        options.optimized_model_filepath = str(Path(folder) / "placed.onnx")
        session = ort.InferenceSession(path, options, providers=[CUDA, "CPUExecutionProvider"])
        if session.get_providers()[0] != CUDA:
            raise SystemExit("the CUDA provider did not start")
        placed = onnx.load(options.optimized_model_filepath, load_external_data=False)
    parts = session.get_provider_graph_assignment_info()
    nodes = {node.name: part.ep_name for part in parts for node in part.get_nodes()}
    print(
        json.dumps({"version": ort.__version__, "nodes": nodes, "copies": dict(copies(placed.graph, "main"))})
    )


if __name__ == "__main__":
    main()
