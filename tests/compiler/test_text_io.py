"""`compile --text-io`: one more graph, held against the tokenizers library, or a refusal with its reason."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxforge.compiler import cli
from onnxforge.compiler.build import build
from onnxforge.compiler.errors import RequestRefused, SelfCheckFailed
from onnxforge.compiler.loop_check import reference
from onnxforge.compiler.targets import TARGETS
from onnxforge.compiler.text_check import PROMPT, check_decoding, check_text, decoder, has_text_graph
from onnxforge.compiler.text_io_option import asked, check_answers, check_text_io, with_text_io
from onnxforge.compiler.text_rules_of import shown
from onnxforge.models.source import Source, SourceKind
from onnxforge.runtimes import load
from onnxforge.runtimes.artifact import read_manifest

TEXT, SPEC = "onnx/model_text.onnx", "onnx/model_spec.onnx"
FP32 = TARGETS[0]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
VOCAB = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_torch: Callable, tiny_bpe: Callable) -> Path:
    """A Hugging Face folder; not to be written to."""
    made = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": VOCAB}
    tiny_torch("llama", None, **sizes).save_pretrained(made)
    (made / "tokenizer.json").write_bytes(tiny_bpe("digits"))
    (made / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    return made


@pytest.fixture(scope="module")
def artifact(folder: Path) -> Path:
    """It compiled with the option; not to be written to."""
    output = folder / "artifact"
    command = [str(folder), "-t", "cpu-fp32", "-o", str(output), "--no-proof", "--text-io"]
    assert cli.run_verb("compile", command) == 0
    return output


def test_it_is_a_file_of_the_artifact_without_weights_of_its_own(artifact: Path):
    records = {record.path: record for record in read_manifest(artifact).files}
    assert records[TEXT].size < records[SPEC].size + 1_000_000
    assert "add-text-io" in json.loads((artifact / "artifact.json").read_text())["pipeline"]
    assert TEXT in (artifact / "README.md").read_text()


def test_without_the_option_there_is_none(tiny_source: Callable, tiny_export: Callable, tmp_path: Path):
    assert not any(map(asked, TARGETS))
    build(tiny_source("llama"), tiny_export("llama"), FP32, "text-generation-with-past", tmp_path, name="m")
    assert not has_text_graph(tmp_path)
    assert TEXT not in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    "command", [[sys.executable, "text.py"], ["node", "text.mjs"]], ids=["python", "node"]
)
def test_an_example_says_what_step_by_step_decoding_says(artifact: Path, tmp_path: Path, command: list[str]):
    source = EXAMPLES / command[1]
    assert len(source.read_text().splitlines()) < 40
    shutil.copy(source, tmp_path)
    if command[0] == "node":
        modules = os.environ.get("NODE_MODULES", "")
        if not Path(modules, "onnxruntime-node").is_dir():
            pytest.skip("set NODE_MODULES to a folder with onnxruntime-node")
        (tmp_path / "node_modules").symlink_to(modules)
    words = [command[0], str(tmp_path / command[1]), str(artifact), "x日 <|start|>7", "12", "4"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with load(artifact) as model:
        ids = tuple(model.tokenizer.encode("x日 <|start|>7", add_special_tokens=True))
        tokens = reference(model, ids, 12)[len(ids) :]
        kept = tokens[: tokens.index(2) + 1] if 2 in tokens else tokens
        assert done.stdout == model.tokenizer.decode(kept) + "\n"
    assert "runs of the decoder" in done.stderr


def check_against(artifact: Path, into: Path, edit: Callable[[dict], object]) -> None:
    """Check a copy whose tokenizer.json, but not its graph, is another."""
    copied = Path(shutil.copytree(artifact, into / "artifact"))
    described = json.loads((copied / "tokenizer.json").read_text())
    edit(described)
    (copied / "tokenizer.json").write_text(json.dumps(described))
    with load(artifact) as model:
        ids = tuple(model.tokenizer.encode(PROMPT, add_special_tokens=True))
        wanted = reference(model, ids, 8)
    check_text(copied, read_manifest(artifact), FP32.provider, wanted, 8)


def test_the_check_names_the_first_text_that_is_read_otherwise(artifact: Path, tmp_path: Path):
    def edit(described: dict) -> None:
        described["pre_tokenizer"] = described["pre_tokenizer"]["pretokenizers"][1]

    with pytest.raises(SelfCheckFailed, match=r"reads .* as \[.*\] from token \d+ on, and the") as failed:
        check_against(artifact, tmp_path, edit)
    assert "without --text-io" in str(failed.value)


def test_the_check_finds_another_answer(artifact: Path, tmp_path: Path):
    def edit(described: dict) -> None:
        described["decoder"] = {"type": "Fuse"}  # bytes stay the letters that stand for them

    with pytest.raises(SelfCheckFailed, match="and step-by-step decoding with"):
        check_against(artifact, tmp_path, edit)


def test_the_check_finds_ids_that_are_written_otherwise(tiny_bpe: Callable):
    tokenizer = Tokenizer.from_str(tiny_bpe("gpt2").decode())
    check_decoding(decoder(shown(tiny_bpe("gpt2"))), tokenizer)
    with pytest.raises(SelfCheckFailed, match=r"writes the ids \[.*\] as"):
        check_decoding(decoder(shown(tiny_bpe("llama3"))), tokenizer)


def test_a_tokenizer_that_the_graph_cannot_follow_is_refused_before_the_export(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    model = tmp_path / "model"
    shutil.copytree(folder, model, ignore=shutil.ignore_patterns("artifact"))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    command = [str(model), "-t", "cpu-fp32", "-o", str(tmp_path / "out"), "--text-io"]
    assert cli.run_verb("compile", command) == 2
    said = capsys.readouterr().err
    assert "--text-io: the tokenizer's model is" in said.replace("\n", " ")
    assert "export " not in said
    assert not (tmp_path / "out").exists()


def test_other_providers_are_refused():
    for target in TARGETS:
        if target.provider == FP32.provider:
            assert with_text_io(with_text_io(target)) == with_text_io(target)
        else:
            with pytest.raises(RequestRefused, match="strings have no kernels"):
                with_text_io(target)
            of_a_file = replace(target, passes=(*target.passes, "add-text-io"))
            with pytest.raises(RequestRefused, match="strings have no kernels"):
                check_text_io(of_a_file, Source(ref="here", kind=SourceKind.FOLDER, config={}))


def test_an_encoder_is_refused(tiny_bpe: Callable):
    sidecars = {"tokenizer.json": tiny_bpe("gpt2")}
    source = Source(ref="here", kind=SourceKind.FOLDER, config={}, sidecars=sidecars)
    header = '<ir_version: 10, opset_import: ["" : 23]>'
    model = ir.from_onnx_text(
        f"{header} encoder (int64[b,s] input_ids) => (int64[b,s] hidden) {{ hidden = Identity(input_ids) }}"
    )
    with pytest.raises(RequestRefused, match="here is an encoder"):
        check_answers(with_text_io(FP32), source, model)
    check_answers(FP32, source, model)


def test_the_option_is_in_the_recipe(capsys: pytest.CaptureFixture[str]):
    assert cli.run_verb("compile", ["m", "-t", "cpu-int8", "--text-io", "--dry-run"]) == 0
    passes = json.loads(capsys.readouterr().out)["target"]["passes"]
    assert passes[-2:] == ["add-speculative-loop", "add-text-io"]
    assert np.sum([step == "add-text-io" for step in passes]) == 1
