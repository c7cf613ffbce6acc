"""Compiles for CUDA on a machine without one: what leaves the provider fails the compile."""

import json
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from onnxforge.compiler import cli
from onnxforge.compiler.build import build
from onnxforge.compiler.placement_report import PlacementPart, check_placement, report_placement
from onnxforge.compiler.target_file import find_target

BUDGET_MISSED = 3


@pytest.fixture(scope="module")
def placed(tiny_source, tiny_export, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """``placed(family, target)``: the placement of every graph of that artifact."""

    def make(family: str, target: str) -> tuple[PlacementPart, ...]:
        folder, exported = tmp_path_factory.mktemp(family), tiny_export(family)
        task = exported.metadata_props["onnxforge.task"]
        built = build(tiny_source(family), exported, find_target(target), task, folder, name=family)
        return report_placement(folder, built.manifest)

    return make


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "bert"])
@pytest.mark.parametrize("target", ["cuda-fp16", "cuda-int8"])
def test_no_hot_node_of_a_tiny_family_leaves_cuda(placed: Callable, family: str, target: str):
    parts = placed(family, target)
    assert [part.hot for part in parts if part.hot] == []
    assert all(check.held for check in check_placement(parts) if check.required)
    assert {part.graph for part in parts} >= ({"main"} if family == "bert" else {"main", "main/Loop.body"})


@pytest.fixture
def planted(tmp_path: Path, tiny_source, tiny_export) -> Callable[[str], Path]:
    """A user's encoder as an .onnx file, with one more operator on its hidden states."""

    def make(operator: str) -> Path:
        model = tiny_export("bert")
        (norm, *_) = [node for node in model.graph if node.op_type == "LayerNormalization"]
        hidden = norm.outputs[0]
        readers = tuple(hidden.uses())
        node = ir.node(operator, [hidden], name="planted")
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "wide", hidden.type, hidden.shape
        model.graph.insert_after(norm, node)
        for reader, index in readers:
            reader.replace_input_with(index, node.outputs[0])
        (tmp_path / "config.json").write_text(json.dumps(tiny_source("bert").config))
        words = {"[UNK]": 0} | {f"w{number}": number for number in range(1, 97)}
        Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
        path = tmp_path / "mine.onnx"
        ir.save(model, path)
        return path

    return make


def compiled(model: Path, *options: str) -> int:
    output = model.parent / "out"
    return cli.run_verb("compile", [str(model), "-t", "cuda-fp16", "-o", str(output), "--no-proof", *options])


def test_an_operator_without_a_kernel_fails_the_compile(planted: Callable[[str], Path], capsys):
    model = planted("Asinh")
    assert compiled(model) == BUDGET_MISSED
    said = " ".join(capsys.readouterr().err.split())
    assert "Asinh planted in onnx/model.onnx main (no kernel: it runs on the CPU; take the operator" in said
    assert "stays on CUDA" in said
    assert not (model.parent / "out").exists()
    assert compiled(model, "--allow-missed-budget") == 0
