"""Small graphs from text, and what the tests of passes ask of them."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass

_TEXT_TYPES = {
    ir.DataType.FLOAT: "float",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.INT64: "int64",
    ir.DataType.UINT8: "uint8",
}


def graph(body: str, opset: int = 23, **weights: np.ndarray | ir.TensorProtocol) -> ir.Model:
    """A model from ``name (inputs) => (outputs) { ... }`` with these initializers; every node has a name.

    The text parser serializes initializers, and some of ours may not be read: the text declares them as
    inputs, and they become initializers afterwards.
    """
    tensors = {k: ir.tensor(item) if isinstance(item, np.ndarray) else item for k, item in weights.items()}
    declared = "".join(
        f", {_TEXT_TYPES[tensor.dtype]}[{','.join(map(str, tensor.shape))}] {name}"
        for name, tensor in tensors.items()
    )
    head, arrow, rest = body.partition(") =>")
    text = (
        f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n{head}{declared}{arrow}{rest}'
    )
    model = ir.from_onnx_text(text)
    for _ in tensors:
        value = model.graph.inputs.pop()
        value.const_value = tensors[value.name]
        value.const_value.name = value.name
        model.graph.register_initializer(value)
    for index, item in enumerate(model.graph):
        item.name = item.name or f"{item.op_type}_{index}"
    return model


def untouchable(*shape: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.LazyTensor:
    """A weight that nobody may read."""

    def refuse() -> ir.TensorProtocol:
        raise AssertionError("a pass has read a weight")

    return ir.LazyTensor(refuse, dtype=dtype, shape=ir.Shape(shape))


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def node(model: ir.Model, op_type: str) -> ir.Node:
    (found,) = [item for item in model.graph if item.op_type == op_type]
    return found


def signature(model: ir.Model) -> list[str]:
    """Everything about a graph but the bytes of its weights."""
    lines = [f"{model.ir_version} {model.opset_imports} {model.graph.doc_string}"]
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for item in model.graph:
        reads = [value.name if value is not None else "" for value in item.inputs]
        attributes = sorted(f"{name}={attribute.value!r}" for name, attribute in item.attributes.items())
        lines.append(f"{item.name} {item.domain}.{item.op_type} {attributes} {reads} {item.metadata_props}")
        values += item.outputs
    lines += [f"{value.name} {value.dtype} {value.shape} {value.metadata_props}" for value in values]
    return lines + [str(value.name) for value in model.graph.outputs]


def apply(step: GraphPass, model: ir.Model) -> list[notes.Note]:
    """Run a pass that must change the graph, and check that a second run changes nothing."""
    with notes.listen() as said:
        assert step(model).modified
    before = signature(model)
    assert not step(model).modified, "not idempotent"
    assert signature(model) == before
    return said


def declined(step: GraphPass, model: ir.Model) -> str:
    """Run a pass that must leave the graph alone, and return the reasons it gave."""
    before = signature(model)
    with notes.listen() as said:
        assert not step(model).modified
    assert signature(model) == before
    return "; ".join(f"{note.what}: {note.reason}" for note in said)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs in ONNX Runtime with its own optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    proto = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    names = {item.name for item in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in names})


def worst(before: ir.Model, after: ir.Model, feeds: dict[str, np.ndarray]) -> float:
    """The largest absolute difference of any output."""
    pairs = zip(run(before, feeds), run(after, feeds), strict=True)
    return max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in pairs)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
