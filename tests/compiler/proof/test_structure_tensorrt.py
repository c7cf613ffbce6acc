"""What the TensorRT provider asks of a graph, rule by rule."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.structure import check_structure
from onnxforge.compiler.targets import TENSORRT
from onnxforge.passes.activation_range import ActivationRange, annotate
from onnxforge.passes.convert_float16 import ConvertFloat16
from onnxforge.passes.insert_qdq import InsertQdq

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
INT8 = {"activations": "int8", "symmetric_activations": True, "provider": "any", "min_elements": 1}
STANDARD, PARSED, OPSET = (
    "standard operators only",
    "the parser knows every operator",
    "the opset is one of 9 to 24",
)
ZEROS = "quantizers are int8 with zero points of 0"
SCALES = "scales are constants: one for a tensor, or one for each output of a weight"
PRODUCTS = "products by a weight multiply in int8"
HALF = "floating point is float16"


def graph(
    body: str, inputs: str = "float[b,64] x", outputs: str = "float[b,32] y", opset: int = 23
) -> ir.Model:
    model = ir.from_onnx_text(f"{HEAD.replace('23', str(opset))}g ({inputs}) => ({outputs}) {{ {body} }}")
    for node in model.graph:
        node.name = node.op_type
    return model


def quantized(half: bool = True, **options) -> ir.Model:
    model = graph("n = Tanh(x)\n y = MatMul(n, x)")
    weight = ir.tensor(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32), name="w")
    value = ir.Value(name="w", shape=ir.Shape((64, 32)), type=ir.TensorType(weight.dtype), const_value=weight)
    model.graph.register_initializer(value)
    model.graph[1].replace_input_with(1, value)
    data = model.graph[0].outputs[0]
    data.type = ir.TensorType(ir.DataType.FLOAT)
    annotate(data, ActivationRange(np.full(64, -1, np.float32), np.full(64, 1, np.float32), 0.5))
    assert InsertQdq(**(INT8 | options))(model).modified
    if half:
        ConvertFloat16()(model)
    return model


def broken(model: ir.Model) -> dict[str, str]:
    return {check.rule: check.found for check in check_structure(model, TENSORRT) if not check.held}


def test_the_form_that_it_wants():
    model = quantized()
    assert broken(model) == {}
    found = {check.rule: check for check in check_structure(model, TENSORRT)}
    assert found[PRODUCTS].found == "1 of 1, 100.0% of the multiplications"
    assert found[ZEROS].found == "all 3"
    assert {rule for rule, check in found.items() if check.required} == {
        STANDARD,
        PARSED,
        OPSET,
        ZEROS,
        SCALES,
    }


def test_one_scale_for_a_whole_weight_is_as_good():
    assert broken(quantized(granularity="tensor")) == {}


@pytest.mark.parametrize(
    ("options", "rules", "found"),
    [
        ({"activations": "uint8"}, {ZEROS, PRODUCTS}, "uint8 (n/QuantizeLinear)"),
        ({"symmetric": False}, {ZEROS}, "a zero point that is not 0 (w/DequantizeLinear)"),
        ({"weights": "int4"}, {ZEROS, PRODUCTS}, "int4 (w/DequantizeLinear)"),
        ({"granularity": "block"}, {SCALES}, "scales along another axis than a weight's outputs"),
        ({"activations": "none"}, {PRODUCTS}, "0 of 1, 0.0% of the multiplications, not MatMul"),
        ({"half": False}, {HALF}, "float (5x)"),
    ],
    ids=lambda item: str(item) if isinstance(item, dict) else "",
)
def test_each_departure_breaks_its_rule(options, rules, found):
    seen = broken(quantized(**options))
    assert set(seen) == rules
    assert not found or any(found in text for text in seen.values()), seen


def test_a_grid_for_every_call():
    model = quantized(half=False, activations="uint8", symmetric_activations=False, dynamic=True)
    assert {ZEROS, PARSED, SCALES} <= set(broken(model))


def test_operators_that_it_does_not_know():
    model = graph("p = com.microsoft.QuickGelu(x)\n y = BitwiseNot(p)", "int8[b,32] x", "int8[b,32] y")
    seen = broken(model)
    assert seen[STANDARD] == "com.microsoft.QuickGelu"
    assert seen[PARSED] == "com.microsoft.QuickGelu; BitwiseNot"


def test_an_opset_from_the_future():
    assert broken(graph("y = Neg(x)", opset=25))[OPSET] == "25"


def test_several_scales_for_one_tensor_of_activations():
    body = "q = QuantizeLinear<axis=1>(x, s, z)\n y = DequantizeLinear<axis=1>(q, s, z)"
    model = graph(body, "float[b,2] x, float[2] s, int8[2] z", "float[b,2] y")
    for name, array in (("s", np.ones(2, np.float32)), ("z", np.zeros(2, np.int8))):
        value = next(v for v in model.graph.inputs if v.name == name)
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    assert "several scales for one tensor of activations" in broken(model)[SCALES]
    assert "a scale that is computed" in broken(graph(body, "float[b,2] x, float[2] s, int8[2] z"))[SCALES]
