"""CUDA kernels that refuse a node for its attributes or shapes: the graphs are those ONNX Runtime refused."""

import onnx_ir as ir
import pytest

from onnxforge.compiler.cuda_kernels import kernel_for
from onnxforge.compiler.cuda_limit_conditions import CONDITIONS
from onnxforge.compiler.cuda_limits import Limit, Outcome, broken_limits, limits
from onnxforge.compiler.placement_report import (
    check_placement,
    placement_parts,
    placement_section,
)
from onnxforge.compiler.structure_check import broken_promises, operator_name

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
BROKEN = [(limit, text) for limit in limits() for text in limit.breaks]
KEPT = [(limit, text) for limit in limits() for text in limit.holds]


def node_of(text: str) -> ir.Node:
    (node,) = ir.from_onnx_text(HEAD + text).graph
    return node


def names(found: list[tuple[Limit, str]]) -> list[str]:
    return [f"{limit.name}-{index}" for index, (limit, _) in enumerate(found)]


@pytest.mark.parametrize(("limit", "text"), BROKEN, ids=names(BROKEN))
def test_a_node_beyond_a_limit_is_told(limit: Limit, text: str):
    (broken,) = broken_limits(node_of(text))
    assert broken.limit is limit
    assert broken.found


@pytest.mark.parametrize(("limit", "text"), KEPT, ids=names(KEPT))
def test_a_node_within_its_limits_is_not(limit: Limit, text: str):
    node = node_of(text)
    assert operator_name(node) in limit.operators
    assert list(broken_limits(node)) == []


def test_every_limit_has_a_rule_examples_and_words():
    assert {limit.name for limit in limits()} == CONDITIONS.keys()
    for limit in limits():
        assert len(limit.said) in (1, len(limit.breaks))
        assert limit.advice or limit.outcome is Outcome.CUDNN
        assert limit.rule
        assert limit.source


@pytest.mark.parametrize("text", [text for limit, text in BROKEN if limit.outcome is Outcome.CPU])
def test_what_the_provider_gives_away_has_no_kernel(text: str):
    assert kernel_for(node_of(text), 23) is None


@pytest.mark.parametrize("text", [text for limit, text in BROKEN if limit.outcome is not Outcome.CPU])
def test_what_it_does_not_has_one(text: str):
    node = node_of(text)
    assert kernel_for(node, 23 if not node.domain else 1) is not None


REFUSED = [(limit, text) for limit, text in BROKEN if limit.outcome in (Outcome.OPEN, Outcome.RUN)]


@pytest.mark.parametrize(("limit", "text"), REFUSED, ids=names(REFUSED))
def test_what_does_not_open_or_run_misses_the_budget(limit: Limit, text: str):
    model = ir.from_onnx_text(HEAD + text)
    model.graph[0].name = "mine"
    parts = tuple(placement_parts(model, "onnx/model.onnx"))
    (broken,) = broken_promises(check_placement(parts))
    assert "within the limits of its CUDA kernel" in broken
    for words in (f"{limit.operators[0].rsplit('.')[-1]}", "mine", limit.outcome.words, limit.advice):
        assert words in broken or limit.operators[0] != operator_name(model.graph[0])
    assert "**beyond its kernel**" in placement_section(parts)


def test_what_cuda_gives_away_is_told_with_its_reason():
    (limit,) = [limit for limit in limits() if limit.name == "last-of-equals"]
    model = ir.from_onnx_text(HEAD + limit.breaks[0])
    model.graph[0].name = "mine"
    (broken,) = broken_promises(check_placement(tuple(placement_parts(model, "onnx/model.onnx"))))
    assert f"ArgMax mine in onnx/model.onnx main (select_last_index: {limit.outcome.words}" in broken
    assert limit.advice in broken


def test_what_needs_cudnn_is_told_and_misses_nothing():
    (limit,) = [limit for limit in limits() if limit.name == "cudnn-attention"]
    parts = tuple(placement_parts(ir.from_onnx_text(HEAD + limit.breaks[0]), "onnx/model.onnx"))
    assert broken_promises(check_placement(parts)) == ()
    (told,) = [check for check in check_placement(parts) if not check.held]
    assert told.found == 'com.microsoft.MultiHeadAttention: pip install "onnxruntime-gpu[cuda,cudnn]"'


def test_open_sizes_break_no_limit():
    norm = "y = com.microsoft.SkipLayerNormalization(x, x, w)"
    text = f"g (float16[n,s,h] x, float16[h] w) => (float16[n,s,h] y) {{ {norm} }}"
    assert list(broken_limits(node_of(text))) == []


def test_blocks_of_a_weight_that_its_product_takes_up_are_none():
    weights = "<int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, 8}, float16[2,2] s = {1, 1, 1, 1}>"
    body = "d = DequantizeLinear<axis = 0, block_size = 2>(w, s)\n y = MatMul(x, d)"
    model = ir.from_onnx_text(f"{HEAD}g (float16[2,4] x) => (float16[2,2] y) {weights} {{ {body} }}")
    assert not any(list(broken_limits(node)) for node in model.graph)
