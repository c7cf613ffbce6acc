"""The graph and its weights on disk."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.compiler.save import ALIGNMENT, save_model, weight_bytes
from onnxforge.passes.lazy import lazy_tensor

TEXT = """
<ir_version: 10, opset_import: ["" : 23]>
g (float[n, 32] x) => (float[n, 32] y, float[n, 32] z) <float[32] bias = {%s}>
{ a = MatMul (x, first)  b = MatMul (x, second)  y = Add (a, bias)  z = Add (b, bias) }
""" % ", ".join(["0.5"] * 32)  # noqa: UP031


def model(*, tied: bool = False, computed: list[str] | None = None) -> ir.Model:
    graph = ir.from_onnx_text(TEXT)
    names = [] if computed is None else computed

    def tensor(name: str) -> ir.LazyTensor:
        def compute() -> np.ndarray:
            names.append(name)
            return np.full((32, 32), len(name), np.float32)

        return lazy_tensor(compute, dtype=ir.DataType.FLOAT, shape=(32, 32), name=name)

    first = tensor("first")
    for value in [v for node in graph.graph for v in node.inputs if v.name in ("first", "second")]:
        value.shape, value.type = ir.Shape((32, 32)), ir.TensorType(ir.DataType.FLOAT)
        value.const_value = first if tied or value.name == "first" else tensor("second")
        graph.graph.register_initializer(value)
    return graph


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run(path: Path) -> list[np.ndarray]:
    return ort.InferenceSession(path).run(None, {"x": np.ones((2, 32), np.float32)})


def test_it_runs_and_small_tensors_stay_inside(tmp_path: Path):
    heard: list[int] = []
    graph, data = save_model(model(), tmp_path, on_bytes=heard.append)
    y, z = run(graph)
    assert (y == 32 * 5 + 0.5).all()
    assert (z == 32 * 6 + 0.5).all()
    assert heard == [4096, 4096]
    proto = onnx.load(graph, load_external_data=False)
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in proto.graph.initializer}
    assert outside["bias"] == {}
    assert {outside[name]["location"] for name in ("first", "second")} == {"model.onnx_data"}
    assert all(int(outside[name]["offset"]) % ALIGNMENT == 0 for name in ("first", "second"))
    onnx.checker.check_model(str(graph))
    assert data.name == "model.onnx_data"


def test_equal_models_give_equal_bytes(tmp_path: Path):
    once, twice = save_model(model(), tmp_path / "a"), save_model(model(), tmp_path / "b")
    assert [digest(p) for p in once] == [digest(p) for p in twice]


def test_tied_weights_are_written_once(tmp_path: Path):
    computed: list[str] = []
    tied = model(tied=True, computed=computed)
    graph, data = save_model(tied, tmp_path)
    assert computed == ["first"]
    assert data.stat().st_size == 4096 == weight_bytes(tied)
    y, z = run(graph)
    assert np.array_equal(y, z)


def test_the_model_is_left_as_it_was(tmp_path: Path):
    source = model()
    before = {name: id(v.const_value) for name, v in source.graph.initializers.items()}
    save_model(source, tmp_path)
    assert {name: id(v.const_value) for name, v in source.graph.initializers.items()} == before


@pytest.mark.parametrize(
    ("dtype", "array"),
    [
        (ir.DataType.BFLOAT16, np.arange(2048, dtype=np.uint16)),
        (ir.DataType.FLOAT16, np.arange(2048, dtype=np.float16)),
        (ir.DataType.UINT8, np.arange(2048).astype(np.uint8)),
        (ir.DataType.UINT4, (np.arange(4096) % 16).astype(np.uint8)),
    ],
)
def test_element_types_come_back(tmp_path: Path, dtype: ir.DataType, array: np.ndarray):
    stored = array.view(dtype.numpy()) if dtype is ir.DataType.BFLOAT16 else array.astype(dtype.numpy())
    value = ir.Value(name="w", shape=ir.Shape(stored.shape), type=ir.TensorType(dtype))
    value.const_value = ir.tensor(stored, dtype=dtype, name="w")
    out = ir.Value(name="y", shape=ir.Shape(stored.shape), type=ir.TensorType(dtype))
    node = ir.Node("", "Identity", [value], outputs=[out])
    graph = ir.Graph([], [out], nodes=[node], initializers=[value], opset_imports={"": 23}, name="g")
    path, _ = save_model(ir.Model(graph, ir_version=11), tmp_path)
    again = ir.load(path).graph.initializers["w"].const_value
    assert again is not None
    assert again.dtype is dtype
    assert again.tobytes() == value.const_value.tobytes()


def test_a_graph_without_weights_has_no_data_file(tmp_path: Path):
    bare = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) { y = Abs (x) }'
    )
    assert [p.name for p in save_model(bare, tmp_path)] == ["model.onnx"]
    assert not (tmp_path / "onnx" / "model.onnx_data").exists()


def test_a_weight_that_lies_about_its_size_is_an_error(tmp_path: Path):
    lying = model()
    value = lying.graph.initializers["first"]
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(np.zeros((2, 32), np.float32)),
        dtype=ir.DataType.FLOAT,
        shape=ir.Shape((32, 32)),
        name="w",
    )
    with pytest.raises(ValueError, match=r"wrote 256 bytes, declared 4096"):
        save_model(lying, tmp_path)


def test_a_derived_model_points_into_the_same_weights(tmp_path: Path):
    main = model()
    other = main.clone()
    save_model(main, tmp_path / "alone")
    graph, data = save_model(main, tmp_path / "both", derived={"onnx/other.onnx": other})
    assert data.read_bytes() == (tmp_path / "alone" / "onnx" / "model.onnx_data").read_bytes()
    assert (tmp_path / "both" / "onnx" / "other.onnx").read_bytes() == graph.read_bytes()
    assert {path.name for path in graph.parent.iterdir()} == {"model.onnx", "model.onnx_data", "other.onnx"}


def test_a_derived_model_brings_no_weights_of_its_own(tmp_path: Path):
    main = model()
    other = main.clone()
    value = next(v for v in other.graph.initializers.values() if v.const_value.nbytes > 1024)
    value.const_value = ir.tensor(np.zeros(4096, np.float32), name="stray")
    with pytest.raises(ValueError, match="stray"):
        save_model(main, tmp_path, derived={"onnx/other.onnx": other})
