"""`onnx/model_spec.onnx` of a compiled artifact: written by default, checked, and shut off by name."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxforge.compiler import cli
from onnxforge.compiler.build import build
from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.compiler.loop_check import check_loop, has_loop, reference
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models.families import FAMILIES
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes import load
from onnxforge.runtimes.artifact import read_manifest

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
WORDS = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, 97)}
SPEC = "onnx/model_spec.onnx"
FP32 = TARGETS[0]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory, tiny_torch: Callable) -> Path:
    """The llama for ``cpu-int8`` with an int8 cache; not to be written to."""
    folder = tmp_path_factory.mktemp("llama")
    tiny_torch("llama", None, **SIZES).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    text = folder / "text.txt"
    text.write_text(" ".join(f"w{word}" for word in np.random.default_rng(1).integers(2, 97, 6000)))
    output = folder / "artifact"
    options = ["--kv", "int8", "--set", "quantize-weights.min_elements=1", "--calibration", str(text)]
    command = [str(folder), "-t", "cpu-int8", "-o", str(output), "--no-proof", *options]
    assert cli.run_verb("compile", command) == 0
    return output


@pytest.fixture
def built(tmp_path: Path, tiny_source: Callable, tiny_export: Callable) -> Callable[..., Path]:
    """``built(family, target)``: the folder of an unproven artifact."""

    def make(family: str, target: Target) -> Path:
        task = str(next(iter(FAMILIES[family].classes)))
        build(tiny_source(family), tiny_export(family), target, task, tmp_path, name=family)
        return tmp_path

    return make


def test_it_is_a_file_of_the_artifact_without_weights_of_its_own(int8: Path):
    records = {record.path: record for record in read_manifest(int8).files}
    assert records[SPEC].size < 2 * records["onnx/model.onnx"].size
    assert {path.name for path in (int8 / "onnx").iterdir()} == {
        "model.onnx",
        "model.onnx_data",
        "model_spec.onnx",
    }
    assert SPEC in (int8 / "README.md").read_text()
    assert "add-speculative-loop" in json.loads((int8 / "artifact.json").read_text())["pipeline"]


def test_one_run_says_what_steps_of_two_rows_say(int8: Path):
    session = ort.InferenceSession(str(int8 / SPEC))
    with load(int8) as model:
        for seed in range(5):
            prompt = tuple(np.random.default_rng(seed).integers(2, 9, 2 + 5 * seed).tolist())
            feeds = {
                "input_ids": np.array([prompt]),
                "max_new_tokens": np.array(30),
                "eos_token_id": np.array([], np.int64),
                "max_draft_tokens": np.array(seed),
            }
            said = session.run(["sequences"], feeds)[0][0].tolist()
            assert said == reference(model, prompt, 30)
            options = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": []}
            drafted = model.generate(prompt, max_draft_tokens=4, **options)
            assert [*prompt, *drafted.token_ids] == said


def example(name: str) -> list[str]:
    lines = (EXAMPLES / name).read_text().splitlines()
    assert len(lines) < 40
    return lines


def said(command: list[str], int8: Path) -> tuple[str, str]:
    words = [command[0], *command[1:], str(int8), "w5 w6 w7 w5 w6", "24", "6"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_python_example_says_what_the_runtime_says(int8: Path):
    imports = {
        line.split()[1].split(".")[0]
        for line in example("generate.py")
        if line.startswith(("import", "from"))
    }
    assert imports - {"json", "pathlib", "sys"} == {"numpy", "onnxruntime", "tokenizers"}
    text, counts = said([sys.executable, str(EXAMPLES / "generate.py")], int8)
    prompt = (5, 6, 7, 5, 6)
    with load(int8) as model:
        tokens = reference(model, prompt, 24)[len(prompt) :]
        kept = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
        assert text == model.tokenizer.decode(kept) + "\n"
    assert "runs of the decoder" in counts


def test_the_javascript_example_says_what_python_says(int8: Path, tmp_path: Path):
    example("generate.mjs")
    modules = os.environ.get("NODE_MODULES", "")
    if not Path(modules, "onnxruntime-node").is_dir():
        pytest.skip("set NODE_MODULES to a folder with onnxruntime-node and @huggingface/tokenizers")
    (tmp_path / "node_modules").symlink_to(modules)
    shutil.copy(EXAMPLES / "generate.mjs", tmp_path)
    python = said([sys.executable, str(EXAMPLES / "generate.py")], int8)
    assert said(["node", str(tmp_path / "generate.mjs")], int8) == python


def test_the_check_finds_a_loop_that_says_something_else(int8: Path):
    manifest = read_manifest(int8)
    with load(int8) as model:
        wanted = reference(model, (2, 3), 8)
    check_loop(int8, manifest, FP32.provider, wanted, 8)
    wrong = [*wanted[:-1], wanted[-1] ^ 1]
    with pytest.raises(SelfCheckFailed, match="says"):
        check_loop(int8, manifest, FP32.provider, wrong, 8)


def test_it_is_written_by_default_and_left_out_by_name(built, tmp_path: Path):
    passes = tuple(text for text in FP32.passes if text != AddSpeculativeLoop.pass_name())
    for target, written in ((FP32, True), (replace(FP32, passes=passes), False)):
        folder = built("llama", target)
        assert has_loop(folder) is written
        assert (SPEC in (folder / "README.md").read_text()) is written
        (folder / SPEC).unlink(missing_ok=True)


def test_an_encoder_has_none(built):
    folder = built("bert", FP32)
    assert not has_loop(folder)
    assert SPEC not in (folder / "README.md").read_text()
