"""`inspect --prunable`: what it tells of a model, and of one that has nothing left to remove."""

import json
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.prunable import PrunableFacts, page, prunable


@pytest.fixture(scope="module")
def facts() -> PrunableFacts:
    return prunable("minilm-l6")


def test_groups_hold_what_shrinks_together(facts):
    units = [(group.unit, group.units, group.parameters) for group in facts.groups]
    assert units == [("query head", 12, 49248), ("channel", 1536, 769)] * 6
    first = next(group for group in facts.groups if group.unit == "channel")
    weights = [axis for axis in first.axes if axis.startswith("encoder.")]
    assert sorted(weights) == [
        "encoder.layer.0.intermediate.dense.bias [-1]",
        "encoder.layer.0.intermediate.dense.weight [-1]",
        "encoder.layer.0.output.dense.weight [-2]",
    ]
    assert facts.layers == 6


def test_the_page_counts_alike_groups_once(facts):
    lines = page(facts).splitlines()
    assert sum("query heads" in line for line in lines) == 1
    assert any("6 x 1536 channels, 769 elements each, 31." in line for line in lines)
    assert any("LayerNormalization: it normalizes over this axis" in line for line in lines)


def test_as_json(capsys: pytest.CaptureFixture[str]):
    assert cli.run_verb("inspect", ["--prunable", "minilm-l6", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["groups"]) == 12


QUANTIZED = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft": 1]>
g (float[batch_size, s, 8] x) => (float[batch_size, s, 8] y)
<float[8, 16] up = {%s}, float[16, 8] down = {%s}> {
    h = MatMul (x, up)
    [grid] q = QuantizeLinear (h, scale)
    d = DequantizeLinear (q, scale)
    y = MatMul (d, down)
}"""


def test_an_artifact_is_read_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ones = ", ".join(["1.0"] * 128)
    model = ir.from_onnx_text(QUANTIZED % (ones, ones))
    (tmp_path / "onnx").mkdir()
    ir.save(model, tmp_path / "onnx" / "model.onnx")
    assert cli.run_verb("inspect", ["--prunable", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "channels" not in said
    assert "quantized already; prune before" in said


def test_one_thing_at_a_time(capsys: pytest.CaptureFixture[str]):
    assert cli.run_verb("inspect", ["--prunable", "minilm-l6", "--diff", "a", "b"]) == 2
    assert cli.run_verb("inspect", ["--prunable", "no-such-model.onnx"]) == 2
    assert "Traceback" not in capsys.readouterr().err
