"""What the CUDA provider asks of a graph, rule by rule."""

import onnx_ir as ir
import pytest

from onnxforge.compiler.structure import check_structure

CUDA = "CUDAExecutionProvider"
HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
PRODUCT = "y = com.microsoft.MatMulNBits <bits = 8, block_size = 32, K = 64, N = 32> (x, codes, scales)"
INPUTS = "float16[b,64] x, uint8[32,2,32] codes, float16[32,2] scales, uint8[32,2] zeros, float16[32] bias"


def checks(body: str, inputs: str = INPUTS, outputs: str = "float16[b,32] y") -> dict[str, tuple[bool, str]]:
    model = ir.from_onnx_text(f"{HEAD}g ({inputs}) => ({outputs}) {{ {body} }}")
    for node in model.graph:
        node.name = node.op_type
    return {check.rule: (check.held, check.found) for check in check_structure(model, CUDA)}


def test_a_product_that_fits_the_kernel():
    found = checks(PRODUCT)
    assert all(held for held, _ in found.values()), found
    assert found["MatMulNBits fits the fused float16 x integer kernel"] == (True, "all 1")


@pytest.mark.parametrize(
    ("was", "now", "reason"),
    [
        ("block_size = 32", "block_size = 64", "block_size 64"),
        ("N = 32", "N = 48", "64 x 48 is no multiple of 32"),
        ("scales)", "scales, zeros)", "zero points"),
        ("scales)", "scales, , , bias)", "a bias inside"),
    ],
)
def test_a_product_that_takes_the_slower_path_is_told_with_the_reason(was: str, now: str, reason: str):
    held, found = checks(PRODUCT.replace(was, now))["MatMulNBits fits the fused float16 x integer kernel"]
    assert (held, found) == (False, f"{reason} (MatMulNBits)")


def test_float32_scales_are_no_float16_scales():
    found = checks(PRODUCT, INPUTS.replace("float16[32,2] scales", "float[32,2] scales"))
    assert "not float16" in found["MatMulNBits fits the fused float16 x integer kernel"][1]
    assert not found["floating point is float16"][0]


def test_a_dequantized_weight_in_front_of_a_product():
    body = "w = DequantizeLinear(q, s)\n y = MatMul(x, w)"
    inputs = "float16[b,64] x, int8[64,32] q, float16 s"
    held, found = checks(body, inputs)["no QuantizeLinear or DequantizeLinear around a MatMul"]
    assert (held, found) == (False, "MatMul after DequantizeLinear MatMul")
    body = "p = MatMul(x, w)\n y = QuantizeLinear(p, s)"
    inputs, outputs = "float16[b,64] x, float16[64,32] w, float16 s", "uint8[b,32] y"
    assert not checks(body, inputs, outputs)["no QuantizeLinear or DequantizeLinear around a MatMul"][0]


def test_operators_without_a_kernel_are_listed():
    body = "a = BitwiseAnd(q, q)\n y = BitwiseAnd(a, q)"
    held, found = checks(body, "uint8[4] q", "uint8[4] y")["every operator has a CUDA kernel for its type"]
    assert (held, found) == (False, "BitwiseAnd (2x)")


def test_attention_in_float32_is_broken_and_required():
    body = """y, k, v = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
      (q, , , pk, pv, lengths, total)"""
    inputs = "float[1,1,192] q, float[1,1,0,64] pk, float[1,1,0,64] pv, int32[1] lengths, int32 total"
    model = ir.from_onnx_text(f"{HEAD}g ({inputs}) => (float[1,1,64] y) {{ {body} }}")
    (check,) = [c for c in check_structure(model, CUDA) if "GroupQueryAttention" in c.rule]
    assert not check.held
    assert check.required
    assert "FLOAT" in check.found


def test_the_cpu_has_no_rules():
    model = ir.from_onnx_text(f"{HEAD}g (float[1] x) => (float[1] y) {{ y = Neg(x) }}")
    assert check_structure(model, "CPUExecutionProvider") == ()
