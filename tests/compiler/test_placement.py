"""Where CUDA would be given each node, and what would be copied: by ONNX Runtime's rules, without a GPU."""

from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.cuda_kernels import kernel_for
from onnxforge.compiler.placement import PlacedGraph, place
from onnxforge.compiler.placement_report import (
    PlacementPart,
    check_placement,
    placement_parts,
    placement_section,
)
from onnxforge.compiler.target_file import find_target
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.base import DerivingPass

HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
BODY = "main/Loop.body"


def graph(body: str, inputs: str, outputs: str) -> ir.Model:
    model = ir.from_onnx_text(f"{HEAD}g ({inputs}) => ({outputs}) {{ {body} }}")
    for node in model.graph.all_nodes():
        node.name = node.outputs[0].name
    return typed(model)


def typed(model: ir.Model) -> ir.Model:
    return ir.from_proto(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


def sides(placed: PlacedGraph) -> tuple[set[str | None], set[str | None]]:
    return {node.name for node in placed.provider}, {node.name for node in placed.host}


def copies(placed: PlacedGraph) -> set[tuple[str | None, str]]:
    return {(copy.value.name, "to host" if copy.to_host else "to device") for copy in placed.copies}


@pytest.mark.parametrize(
    ("node", "inputs", "fits"),
    [
        ("y = Add(a, a)", "int64[2] a", True),
        ("y = MatMul(a, a)", "int32[2,2] a", False),
        ("y = BitwiseOr(a, a)", "int64[2] a", False),
        ("y = ArgMax<axis = 0>(a)", "float16[2] a", True),
        ("y = ArgMax<axis = 0>(a)", "int32[2] a", False),
        ("y = com.microsoft.FastGelu(a)", "float16[2] a", True),
        ("y = com.microsoft.NoSuchThing(a)", "float16[2] a", False),
    ],
)
def test_a_kernel_is_found_by_operator_and_type(node: str, inputs: str, fits: bool):
    model = ir.from_onnx_text(f"{HEAD}g ({inputs}) => (y) {{ {node} }}")
    opset = 1 if "com." in node else 23
    assert (kernel_for(model.graph[0], opset) is not None) == fits


def test_a_kernel_without_an_end_is_for_the_version_that_it_names():
    node = graph("y = Cast<to = 1>(a)", "float16[2] a", "float[2] y").graph[0]
    found = {version: kernel_for(node, version) for version in (13, 19, 21, 23)}
    assert all(found.values())
    assert len({(kernel.first, kernel.last) for kernel in found.values() if kernel}) == 4
    newest = kernel_for(node, 25)
    assert newest is None or not newest.implements(99)


def test_computing_with_shapes_stays_on_the_cpu():
    body = """
      size = Shape(x)
      one = Constant<value_ints = [1]>()
      more = Add(size, one)
      wide = Expand(x, more)
      y = Relu(wide)
    """
    (placed,) = place(graph(body, "float16[n] x", "float16[m] y"))
    assert sides(placed) == ({"size", "wide", "y"}, {"more"})
    assert copies(placed) == set(), "Expand wants its shape on the CPU"


def test_small_numbers_that_nothing_ties_to_the_cpu_go_to_cuda():
    body = "one = Constant<value_ints = [1]>()\n more = Add(n, one)\n y = Expand(x, more)"
    (placed,) = place(graph(body, "float16[a] x, int64[1] n", "float16[m] y"))
    assert sides(placed)[1] == set()
    assert copies(placed) == {("more", "to host")}


def test_an_operator_without_a_kernel_is_between_two_copies():
    body = "a = Add(x, x)\n b = BitwiseNot(a)\n y = Mul(b, x)"
    (placed,) = place(graph(body, "int64[n] x", "int64[n] y"))
    assert sides(placed) == ({"a", "y"}, {"b"})
    assert copies(placed) == {("a", "to host"), ("b", "to device")}
    assert [node.name for node in placed.unsupported] == ["b"]


def test_a_zero_made_of_a_shape_takes_a_value_to_the_cpu():
    body = """
      size = Shape<start = 0, end = 1>(x)
      none = Sub(size, size)
      own = Add(n, none)
      taken = BitwiseOr(made, none)
      sum = Add(own, taken)
      made = Identity(m)
      y = Relu(x)
    """
    body = "made = Identity(m)\n" + body.replace("made = Identity(m)", "")
    (placed,) = place(graph(body, "float16[a] x, int64[1] n, int64[1] m", "float16[a] y, int64[1] sum"))
    assert sides(placed)[1] == {"none", "own", "taken", "sum"}
    assert copies(placed) == {("made", "to host")}


def test_half_precision_is_never_left_to_the_cpu():
    body = "s = Shape(x)\n f = Cast<to = 10>(s)\n g = Add(f, f)\n y = Add(g, x)"
    (placed,) = place(graph(body, "float16[1] x", "float16[1] y"))
    assert "f" in sides(placed)[1]
    assert "g" in sides(placed)[0]


@pytest.fixture(scope="module")
def loop(tiny_export: Callable[..., ir.Model]) -> Callable[[str, str], ir.Model]:
    def make(family: str, target: str) -> ir.Model:
        model = tiny_export(family)
        for step in pipeline.parse(find_target(target).passes):
            result = step(model)
            if isinstance(step, DerivingPass):
                return typed(result.model)
        raise AssertionError(f"{target} derives no loop")

    return make


def parts(model: ir.Model) -> dict[str, PlacementPart]:
    return {part.graph: part for part in placement_parts(model, "onnx/model_spec.onnx")}


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt2"])
@pytest.mark.parametrize("target", ["cuda-fp16", "cuda-int8"])
def test_a_step_of_the_loop_copies_tokens_choices_and_its_state(loop, family: str, target: str):
    found = parts(loop(family, target))
    assert not any(part.hot for part in found.values())
    assert {(copy.value, copy.how) for copy in found[BODY].copies} == {
        ("loop/draft/input_ids", "Memcpy"),
        ("loop/choose/seen", "Memcpy"),
        ("loop/state", "carried"),
        ("loop/accept/state", "carried"),
    }
    assert [copy.value for copy in found[f"{BODY}/If.then_branch"].copies] == ["loop/choose/column"]
    assert sum(copy.bytes for copy in found[BODY].copies) < 20_000


def test_a_planted_operator_in_the_body_is_caught(loop):
    model = loop("llama", "cuda-int8")
    (node,) = [node for node in model.graph if node.op_type == "Loop"]
    body = node.attributes["body"].as_graph()
    head = next(node for node in body if node.name == "/loop/choose/number")
    wide = head.outputs[0]
    readers = list(wide.consumers())
    planted = ir.node("Asinh", [wide], name="planted")
    planted.outputs[0].dtype, planted.outputs[0].shape = wide.dtype, wide.shape
    for reader in readers:
        reader.replace_input_with(list(reader.inputs).index(wide), planted.outputs[0])
    body.insert_after(head, planted)
    planted.outputs[0].name = "planted_output"
    found = tuple(parts(model).values())
    assert [part.hot for part in found if part.graph == BODY] == [("Asinh planted",)]
    hot, limits, *_ = check_placement(found)
    assert limits.held
    assert (hot.held, hot.required) == (False, True)
    assert "Asinh planted in onnx/model_spec.onnx main/Loop.body" in hot.found
    page = placement_section(found)
    assert "**off CUDA**: Asinh planted" in page
    assert "`loop/choose/number` to the CPU" in page
    assert "`planted_output` to the GPU" in page


def test_nothing_is_said_of_other_providers():
    assert check_placement(()) == ()
    assert placement_section(()) == ""


def test_the_report_lists_what_crosses(loop):
    found = tuple(parts(loop("llama", "cuda-fp16")).values())
    page = placement_section(found)
    assert "| `onnx/model_spec.onnx` main/Loop.body " in page
    assert "`loop/accept/state` to the GPU, 8,192 bytes (carried)" in page
    assert all(check.held for check in check_placement(found))
    assert AddSpeculativeLoop.file == "onnx/model_spec.onnx"


@pytest.fixture(scope="module")
def decoder(tiny_export: Callable[..., ir.Model]) -> tuple[PlacementPart, ...]:
    model = tiny_export("llama")
    for step in pipeline.parse(find_target("cuda-fp16").passes):
        if not isinstance(step, DerivingPass):
            step(model)
    return tuple(placement_parts(typed(model), "onnx/model.onnx"))


def test_a_token_moves_ids_mask_and_logits(decoder: tuple[PlacementPart, ...]):
    page = placement_section(decoder)
    mask, logits = 8 * 1024, 97 * 2
    assert f"**each token** moves {8 + mask:,} bytes to the GPU and {logits:,} back" in page
    assert f"`input_ids` 8, `attention_mask` {mask:,}, `logits` {logits:,}" in page
    assert {fact.value for fact in decoder[0].edges} == {"input_ids", "attention_mask", "logits"}, "no cache"


def test_a_step_of_the_loop_and_its_run_are_told_apart(loop):
    page = placement_section(tuple(parts(loop("llama", "cuda-fp16")).values()))
    (line,) = [line for line in page.splitlines() if "**each step**" in line]
    assert "moves 8,256 bytes to the GPU and 8,320 back" in line
    assert "where it draws tokens 32 bytes to the GPU" in line
    assert "a whole run" in line
