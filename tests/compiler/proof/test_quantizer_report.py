"""Quantizers that a provider leaves beside float operators: found, named, and an error where it costs."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.headline import headline
from onnxforge.compiler.left_quantizers import left_quantizers
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.quantizer_report import QuantizerReport, report_quantizers
from onnxforge.compiler.quantizer_section import quantizer_section
from onnxforge.compiler.request import CompileResult
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.compiler.structure import check_structure
from onnxforge.compiler.targets import CPU, CUDA, TENSORRT
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.activation_range import ActivationRange, annotate
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.runtimes.artifact import Manifest

BODY = """<ir_version: 10, opset_import: ["" : 23]>
g (float[b,s,64] x) => (float[b,s,64] y) {
  n = Tanh(x)
  p = MatMul(n, up)
  a = Sigmoid(p)
  y = MatMul(a, down)
}"""
SOURCE = Source("tiny", SourceKind.FOLDER, {"vocab_size": 200})


def model(width: int = 128, **options) -> ir.Model:
    """Two products, the first of them quantized."""
    found = ir.from_onnx_text(BODY)
    rng = np.random.default_rng(0)
    for name, shape in (("up", (64, width)), ("down", (width, 64))):
        tensor = ir.tensor(rng.standard_normal(shape).astype(np.float32), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        found.graph.register_initializer(value)
        for node in found.graph:
            for index, read in enumerate(node.inputs):
                if read.name == name:
                    node.replace_input_with(index, value)
    for node in found.graph:
        node.name = f"/{node.outputs[0].name}"
        for value in node.outputs:
            ends = np.full(64, -1, np.float32), np.full(64, 1, np.float32)
            annotate(value, ActivationRange(*ends, 0.5))
    if options:
        assert InsertQdq(**({"only": "up", "provider": "any", "min_elements": 1} | options))(found).modified
    return found


def report(found: ir.Model, folder: Path, provider: str = CPU) -> QuantizerReport | None:
    save_model(found, folder)
    fields = {field.name: "" for field in dataclasses.fields(Manifest)}
    manifest = Manifest(**(fields | {"provider": provider, "session": {}}))
    return report_quantizers(found, folder / GRAPH, manifest, CPU)


def test_a_graph_without_quantizers_has_nothing_to_report(tmp_path):
    assert report(model(), tmp_path) is None


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"activations": "uint8"}, "MatMulIntegerToFloat"),
        ({"dynamic": True}, "DynamicQuantizeMatMul"),
        ({"activations": "none"}, "MatMulNBits (accuracy_level 4)"),
    ],
    ids=str,
)
def test_what_fuses_is_counted_by_kernel(tmp_path, options, kernel):
    found = report(model(**options), tmp_path)
    assert found.left == ()
    assert found.complaint == ""
    assert found.kernels == {kernel: 1}
    assert "Every quantizer is part of one." in quantizer_section(found)


def test_the_level_that_the_session_asks_for_is_reported(tmp_path):
    quantized = model(activations="none")
    save_model(quantized, tmp_path)
    fields = {field.name: "" for field in dataclasses.fields(Manifest)}
    session = {"session.qdq_matmulnbits_accuracy_level": "0"}
    manifest = Manifest(**(fields | {"provider": CPU, "session": session}))
    found = report_quantizers(quantized, tmp_path / GRAPH, manifest, CPU)
    assert list(found.kernels) == ["MatMulNBits (accuracy_level 0)"]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"activations": "uint16"}, "there is no kernel for uint16 activations"),
        ({"weights": "int4"}, "no kernel multiplies 8-bit activations by int4 weights"),
        ({"weights": "int16", "activations": "none"}, "there is no kernel for int16 weights"),
    ],
    ids=str,
)
def test_a_planted_pair_is_found_with_its_bytes_and_the_reason(tmp_path, options, why):
    quantized = model(**options)
    found = report(quantized, tmp_path)
    weights = [item for item in found.left if item.weight_bytes]
    assert [(item.node, item.beside, item.beside_op) for item in weights] == [
        ("up/DequantizeLinear", "/p", "MatMul")
    ]
    codes = next(v for v in quantized.graph.initializers.values() if v.name.startswith("up."))
    assert weights[0].weight_bytes == codes.const_value.nbytes
    assert weights[0].share == pytest.approx(0.5)
    assert {item.why for item in found.left} == {why}
    activations = {item.op_type for item in found.left if not item.weight_bytes}
    assert activations == (
        set() if options.get("activations") == "none" else {"QuantizeLinear", "DequantizeLinear"}
    )
    assert found.hot == found.left
    assert "`/p` (50.0%)" in found.complaint
    assert why in found.complaint
    assert f"**error**: {why}" in quantizer_section(found)


def test_a_small_product_is_listed_and_is_no_error():
    item = left_quantizers(model(activations="uint16").graph, CPU)[0]
    share = {"share": 0.0005}
    few = QuantizerReport("here", 3, (dataclasses.replace(item, **share),))
    assert few.complaint == ""
    many = tuple(dataclasses.replace(item, beside=str(index), **share) for index in range(30))
    assert len(QuantizerReport("here", 90, many).hot) == 30, "each is small, and together they are not"


def test_a_restored_value_beside_another_operator_costs_no_product(tmp_path):
    body = """<ir_version: 10, opset_import: ["" : 23]>
    g (int8[b,64] x, float s) => (float[b,64] y) { d = DequantizeLinear(x, s) y = Tanh(d) }"""
    quantized = ir.from_onnx_text(body)
    found = report(quantized, tmp_path)
    assert [(item.beside_op, item.share, item.why) for item in found.left] == [
        ("Tanh", 0, "no integer kernel computes Tanh")
    ]
    assert found.complaint == ""


@pytest.mark.parametrize(
    ("between", "why"),
    [("Relu", "its other operand is float"), ("Cast<to=1>", "Cast stands between")],
)
def test_the_reason_names_what_is_missing(between, why):
    quantized = model(activations="uint8")
    weight = next(node for node in quantized.graph if node.name == "up/DequantizeLinear")
    operator, _, attribute = between.partition("<")
    attributes = [ir.AttrInt64("to", 1)] if attribute else []
    made = ir.Node("", operator, [weight.outputs[0]], attributes, name="between")
    reader = next(node for node in quantized.graph if node.name == "/p")
    quantized.graph.insert_before(reader, made)
    reader.replace_input_with(1, made.outputs[0])
    assert any(why in item.why for item in left_quantizers(quantized.graph, CPU))


def test_where_the_provider_is_not_here_its_form_is_judged(tmp_path):
    int8 = {"activations": "int8", "symmetric_activations": True}
    for provider, options, fuses in (
        (CUDA, {"activations": "none"}, True),
        (CUDA, int8, False),
        (TENSORRT, int8, True),
        (TENSORRT, {"activations": "none"}, False),
        (TENSORRT, {"activations": "uint8"}, False),
    ):
        found = report(model(**options), tmp_path, provider)
        assert (found.left == ()) is fuses, (provider, options)
        assert "the graph's form" in found.source


def test_weights_alone_are_no_fault_on_cuda():
    checks = check_structure(model(activations="none"), CUDA)
    assert all(check.held for check in checks if "around a MatMul" in check.rule)
    checks = check_structure(model(), CUDA) + check_structure(model(activations="uint8"), CUDA)
    assert [check.held for check in checks if "around a MatMul" in check.rule] == [True, False]


def test_an_artifact_with_a_planted_pair_misses_its_proof(make_artifact):
    staging = make_artifact("staging")
    graph = ir.load(staging / GRAPH)
    for value in graph.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().copy(), name=value.name)
    step = InsertQdq(activations="none", weights="int16", min_elements=1, only="head", provider="any")
    assert step(graph).modified
    save_model(graph, staging)
    options = ProofOptions(
        "cpu-int8", lambda name, folder: make_artifact(name, into=folder), windows=2, window=32, speed=False
    )
    proof = prove(staging, SOURCE, None, options, Ledger())
    (missed,) = proof.missed
    assert "no quantizer is left beside a hot product" in missed
    assert "there is no kernel for int16 weights" in missed
    assert proof.summary["quantizers_left"] == 1
    assert proof.summary["quantizers_left_bytes"] == 8 * 200 * 2
    page = (staging / "report" / "index.md").read_text()
    assert "## Quantizers" in page
    evidence = json.loads((staging / "report" / "report.json").read_text())["evidence"]
    assert evidence["quantizers"]["left"][0]["beside_op"] == "MatMul"
    result = CompileResult(
        staging, "text-generation", "cpu-int8", (), "0" * 64, 1, 1.0, {**proof.summary, "proof": True}, ()
    )
    assert "1 quantizers beside float operators" in headline(result)
