"""Run by a Python with onnxruntime-gpu for bench/cuda_registry.py: kernels, and where they want inputs."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as state

CUDA = "CUDAExecutionProvider"
F, L, B = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
N, S = TensorProto.INT32, TensorProto.FLOAT
PROBED: dict[str, tuple[tuple[int, ...], dict[str, object]]] = {
    "Clip": ((F, F, F), {}),
    "Compress": ((L, B), {"axis": 0}),
    "ConstantOfShape": ((L,), {}),
    "CumSum": ((S, L), {}),
    "Equal": ((L, L), {}),
    "Expand": ((F, L), {}),
    "Gather": ((F, L), {}),
    "GatherElements": ((F, L), {}),
    "GatherND": ((F, L), {}),
    "Mod": ((L, L), {}),
    "OneHot": ((L, L, L), {}),
    "Pad": ((F, L, F, L), {}),
    "Range": ((L, L, L), {}),
    "ReduceMax": ((F, L), {}),
    "ReduceMean": ((F, L), {}),
    "ReduceMin": ((F, L), {}),
    "ReduceSum": ((L, L), {}),
    "ReduceSumSquare": ((F, L), {}),
    "Reshape": ((F, L), {}),
    "ScatterElements": ((F, L, F), {"axis": 0}),
    "ScatterND": ((F, L, F), {}),
    "Shape": ((F,), {}),
    "Size": ((F,), {}),
    "Slice": ((F, L, L, L, L), {}),
    "Split": ((F, L), {}),
    "Squeeze": ((F, L), {}),
    "Tile": ((F, L), {}),
    "TopK": ((F, L), {}),
    "Trilu": ((F, L), {}),
    "Unsqueeze": ((F, L), {}),
    "Where": ((B, L, L), {}),
    "RotaryEmbedding": ((F, F, F, L), {}),
    "Attention": ((F, F, F, F), {}),
    "com.microsoft.GroupQueryAttention": (
        (F, F, F, F, F, N, N, F, F),
        {"num_heads": 1, "kv_num_heads": 1, "do_rotary": 1},
    ),
    "com.microsoft.MultiHeadAttention": ((F, F, F, F, N), {"num_heads": 1}),
    "com.microsoft.RotaryEmbedding": ((F, L, F, F), {}),
    "com.microsoft.GatherBlockQuantized": ((TensorProto.UINT8, L, F), {"bits": 8, "block_size": 32}),
}
"""Operators whose inputs are looked at, one by one: types of the inputs, attributes.

Those that take a shape, an axis or a count as an input, and for comparison some that take ordinary indices.
"""


def kernels() -> list[dict[str, object]]:
    library = Path(ort.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"
    try:
        ort.register_execution_provider_library("cuda", str(library))
    except Exception:  # a virtual device beside the card is asked for, and is not there
        print(end="")
    schemas = {(s.domain, s.name, s.since_version): s for s in state.get_all_operator_schema()}
    return [
        {
            "domain": kernel.domain,
            "name": kernel.op_name,
            "versions": list(kernel.version_range),
            "types": {
                where: sorted(kernel.type_constraints[name])
                for where, name in formal(schemas, kernel)
                if name in kernel.type_constraints
            },
        }
        for kernel in state.get_registered_ep_kernel_defs(CUDA)
        if kernel.provider == CUDA
    ]


def formal(schemas: dict[tuple[str, str, int], object], kernel: object) -> Iterator[tuple[str, str]]:
    """Where each type constraint of the operator can be seen first: an input's number, or an output's."""
    first, last = kernel.version_range
    fitting = [v for d, n, v in schemas if (d, n) == (kernel.domain, kernel.op_name) and first <= v <= last]
    if not fitting:
        return
    schema, seen = schemas[kernel.domain, kernel.op_name, min(fitting)], set()
    for sign, parameters in (("i", schema.inputs), ("o", schema.outputs)):
        for index, parameter in enumerate(parameters):
            mixed = not parameter.isHomogeneous
            if parameter.typeStr not in seen and not mixed:
                seen.add(parameter.typeStr)
                yield f"{sign}{index}", parameter.typeStr


def host_inputs(name: str) -> list[int] | None:
    """Inputs that are not copied though a node on the CPU made them; None where CUDA leaves the node."""
    kinds, attributes = PROBED[name]
    domain, _, operator = name.rpartition(".")
    nodes, inputs = [], []
    for index, kind in enumerate(kinds):
        inputs.append(helper.make_tensor_value_info(f"x{index}", TensorProto.STRING, None))
        nodes.append(helper.make_node("Cast", [f"x{index}"], [f"c{index}"], to=kind))  # of text: CPU only
    outputs = {"TopK": ["y", "z"], "GroupQueryAttention": ["y", "k", "v"]}.get(operator, ["y"])
    attributes = {"to": F} if operator == "Cast" else attributes
    made = [f"c{index}" for index in range(len(kinds))]
    probed = helper.make_node(operator, made, outputs, "probed", domain=domain, **attributes)
    nodes += [probed, helper.make_node("Shape", ["y"], ["shape"])]
    result = [helper.make_tensor_value_info("shape", L, None)]
    graph = helper.make_graph(nodes, "probe", inputs, result)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "placed.onnx")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CUDA])
        placed = onnx.load(options.optimized_model_filepath).graph
    where = {
        n.name: part.ep_name
        for part in session.get_provider_graph_assignment_info()
        for n in part.get_nodes()
    }
    if where.get("probed") != CUDA:
        return None
    (node,) = [n for n in placed.node if n.name == "probed"]
    copies = {out for n in placed.node if n.op_type == "MemcpyFromHost" for out in n.output}
    return [index for index, value in enumerate(node.input) if value not in copies]


if __name__ == "__main__":
    hosts: dict[str, object] = {}
    for name in PROBED:
        try:
            hosts[name] = host_inputs(name)
        except Exception as error:
            hosts[name] = f"{error}"[:200]
    print(json.dumps({"version": ort.__version__, "kernels": kernels(), "hosts": hosts}))
