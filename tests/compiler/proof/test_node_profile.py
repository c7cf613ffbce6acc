"""Where the time goes: counted against what the hand-made graphs have to compute."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.node_costs import NodeCost, node_costs
from onnxforge.compiler.node_profile import NodeTime, profile
from onnxforge.compiler.profile_page import profile_json, profile_page
from onnxforge.compiler.roofline import Machine
from onnxforge.compiler.speed_types import SpeedTest

HEADS, WIDTH, LAYERS, VOCABULARY = 2, 4, 2, 200
"""Of the artifacts that `make_artifact` makes."""
HIDDEN = HEADS * WIDTH
PREFILL, DECODE = SpeedTest(prompt=16), SpeedTest(generate=6, depth=8)


def test_every_multiplication_of_a_test_is_counted_once(make_artifact):
    folder = make_artifact("a")
    prefill, decode = profile(folder, (PREFILL, DECODE), threads=1)
    for found, rows, runs in ((prefill, 16, 1), (decode, 6, 6)):
        products = [node for node in found.nodes if node.operator == "MatMul"]
        assert sum(node.macs for node in products) == rows * (
            LAYERS * 4 * HIDDEN * HIDDEN + HIDDEN * VOCABULARY
        )
        assert {node.calls for node in products} == {runs}
        head = next(node for node in products if node.macs == rows * HIDDEN * VOCABULARY)
        assert head.read_bytes == runs * 4 * HIDDEN * VOCABULARY
        assert [node.seconds for node in found.nodes] == sorted(
            (n.seconds for n in found.nodes), reverse=True
        )
        assert 0 < sum(node.seconds for node in found.nodes) + found.between <= found.seconds * 1.001
    operators = {node.operator: node for node in prefill.by_operator()}
    assert operators["MatMul"].calls == 4 * LAYERS + 1


def test_an_encoders_batch_is_profiled(make_artifact):
    (found,) = profile(make_artifact("a", kind="encoder"), (SpeedTest(sentences=3),), threads=1)
    products = [node for node in found.nodes if node.operator == "MatMul"]
    assert sum(node.macs for node in products) == found.repeats * 3 * 64 * LAYERS * 4 * HIDDEN * HIDDEN
    attention = next(node for node in found.by_operator() if node.macs and node.operator != "MatMul")
    assert attention.macs == found.repeats * LAYERS * 3 * 2 * HIDDEN * 64 * 64


def test_attention_over_a_shared_cache_counts_the_keys_that_it_may_see():
    text = f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float16[1,n,{HIDDEN * 2}] q, float16[1,{HEADS // 2},p,{WIDTH}] k, float16[1,{HEADS // 2},p,{WIDTH}] v,
       int32[1] lengths, int32 total) => (float16[1,n,{HIDDEN}] y) {{
      y, pk, pv = com.microsoft.GroupQueryAttention
        <num_heads={HEADS}, kv_num_heads={HEADS // 2}>(q, , , k, v, lengths, total)
    }}"""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        node.name = "attention"
    cost = node_costs(model)["attention"]
    assert cost.macs(5, tokens=5, past=7) == 2 * HIDDEN * sum(7 + place for place in range(1, 6))
    assert cost.read_bytes(5, 7) == 12 * 2 * (HEADS // 2) * WIDTH * 2


def test_a_bound_is_the_longer_of_reading_and_multiplying():
    machine = Machine(threads=2, read_bandwidth=1e9, float_rate=1e10, integer_rate=4e10)
    assert NodeTime("", "MatMul", 1, 1.0, 5_000, False, 10).bound(machine) == pytest.approx(1e-6)
    assert NodeTime("", "MatMul", 1, 1.0, 5_000, True, 10).bound(machine) == pytest.approx(0.25e-6)
    assert NodeTime("", "MatMul", 1, 1.0, 5_000, True, 900).bound(machine) == pytest.approx(0.9e-6)
    assert NodeTime("", "Add", 1, 1.0, 0, False, 0).bound(machine) == 0
    assert NodeCost("Add").macs(9, 9, 9) == 0


def test_the_page_lists_operators_nodes_and_what_is_between(make_artifact, onnxforge_bench):
    folder = make_artifact("a")
    code, page = onnxforge_bench(folder, "-p", 16, "-n", 4, "--profile", "--top", 2, "--threads", 1)
    assert code == 0
    assert "Measured peaks of this machine, 1 threads:" in page
    assert page.count("| between kernels |") == 2
    for title in ("## pp16: ", "## tg4: "):
        assert title in page
    nodes = page.split("## tg4")[1].split("| node")[1].strip().splitlines()
    assert len(nodes) == 2 + 2
    said = json.loads(profile_json(folder, (PREFILL,), 1))
    assert said["machine"]["threads"] == 1
    (test,) = said["tests"]
    assert test["test"] == "pp16"
    assert all(node["seconds"] >= 0 and node["bound"] >= 0 for node in test["nodes"])
    assert "MatMul" in profile_page(folder, (PREFILL,), 1, top=0)
    assert np.isfinite(test["between"])


@pytest.fixture
def onnxforge_bench(capsys):
    import typer

    from onnxforge.compiler.cli import run_app
    from onnxforge.compiler.cmd_bench import bench

    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("bench")(bench)

    def run(*arguments):
        code = run_app(app, [*map(str, arguments)])
        return code, capsys.readouterr().out

    return run
