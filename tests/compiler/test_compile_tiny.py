"""A Hugging Face folder becomes an artifact that answers as PyTorch does: the whole house on tiny models."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from onnxforge.compiler import cli
from onnxforge.compiler.draft_model import DRAFT_FOLDER
from onnxforge.compiler.draft_option import SKIP_GRAPH
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.runtimes import Decoder, Encoder, load
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.errors import ArtifactError, RequestError

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
WORDS = {"[PAD]": 0, "[UNK]": 1} | {f"w{i}": i for i in range(2, 97)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_torch: Callable) -> Callable[..., Path]:
    """``folder(model_type, task)``: a checkpoint of ``save_pretrained`` with a word-level tokenizer."""
    made: dict[str, Path] = {}

    def make(model_type: str, task: str | None = None) -> Path:
        if model_type not in made:
            path = made[model_type] = tmp_path_factory.mktemp(model_type)
            tiny_torch(model_type, task, **SIZES).save_pretrained(path)
            tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="[UNK]"))
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
            tokenizer.save(str(path / "tokenizer.json"))
            (path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
        return made[model_type]

    return make


def compiled(model: Path, output: Path, target: str, *options: str) -> Path:
    code = cli.run_verb("compile", [str(model), "-t", target, "-o", str(output), "--no-proof", *options])
    assert code == 0
    return output


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory, folder: Callable[..., Path]) -> Path:
    """The llama, compiled for ``cpu-fp32``; not to be written to."""
    return compiled(folder("llama"), tmp_path_factory.mktemp("artifact") / "out", "cpu-fp32")


def test_a_decoder_in_float32_says_what_torch_says(artifact: Path, tiny_torch: Callable):
    import torch

    reference = tiny_torch("llama", None, **SIZES)
    prompt = [5, 17, 42, 9]
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )[0, len(prompt) :].tolist()
    with load(artifact) as model:
        assert isinstance(model, Decoder)
        assert (
            list(model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=96).token_ids)
            == expected
        )


def test_a_decoder_in_int8_stays_close(
    tmp_path: Path, folder: Callable[..., Path], artifact: Path, capsys: pytest.CaptureFixture[str]
):
    """Logits of both artifacts on the same tokens, straight from ONNX Runtime."""
    words = np.random.default_rng(1).integers(2, 97, 6000)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{word}" for word in words))
    options = ("--set", "quantize-weights.min_elements=1", "--calibration", str(text), "--json")
    int8 = compiled(folder("llama"), tmp_path / "int8", "cpu-int8", *options)
    assert json.loads(capsys.readouterr().out)["task"] == "text-generation-with-past"
    paths = [artifact, int8]
    ids = np.random.default_rng(0).integers(2, 97, (1, 24))
    logits = []
    for path in paths:
        session = ort.InferenceSession(path / "onnx" / "model.onnx")
        feed: dict[str, np.ndarray] = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for value in session.get_inputs():
            if value.name.startswith("past_"):
                feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        logits.append(session.run(["logits"], feed)[0])
    cosine = np.vdot(*logits) / np.prod([np.linalg.norm(x) for x in logits])
    assert 0.99 < cosine < 1 - 1e-9, "close, and really quantized"
    assert (paths[1] / "onnx/model.onnx_data").stat().st_size < (
        paths[0] / "onnx/model.onnx_data"
    ).stat().st_size / 2


@pytest.mark.parametrize("target", ["cuda-fp16", "cuda-int8", "cuda-int4"])
def test_a_decoder_for_cuda_compiles_without_a_gpu(
    tmp_path: Path, folder: Callable[..., Path], artifact: Path, target: str
):
    """It runs on the CPU where that is asked for, never in silence; float16 moves the logits by a hair."""
    small = () if target == "cuda-fp16" else ("--set", "quantize-weights.min_elements=1")
    made = compiled(folder("llama"), tmp_path / "half", target, *small)
    wide = artifact
    if small:
        in_float32 = ("--without", "convert-float16", "--allow-missed-budget")  # off CUDA: no kernel for it
        wide = compiled(folder("llama"), tmp_path / "wide", target, *small, *in_float32)
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        with pytest.raises(RequestError, match="needs CUDAExecutionProvider"):
            load(made)
    ids = np.random.default_rng(0).integers(2, 97, (1, 24))
    ours, theirs = (GraphSession(path, "CPUExecutionProvider").logits(ids) for path in (made, wide))
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 5e-3
    with load(made, provider="cpu") as model:
        assert isinstance(model, Decoder)
        assert model.generate([5, 17, 42], max_new_tokens=6, do_sample=False).token_ids


def test_an_encoder_for_two_tasks(
    tmp_path: Path, folder: Callable[..., Path], tiny_torch: Callable, capsys: pytest.CaptureFixture[str]
):
    import torch

    source = folder("bert", "sequence-classification")
    output = compiled(source, tmp_path / "out", "cpu-fp32")
    with torch.no_grad():
        reference = tiny_torch("bert", "sequence-classification", **SIZES)
        expected = reference(torch.tensor([[5, 17, 42]])).logits[0].numpy()
    session = ort.InferenceSession(output / "onnx" / "model.onnx")
    assert {tuple(value.shape) for value in session.get_inputs()} == {("batch_size", "sequence_length")}
    with load(output) as model:
        assert isinstance(model, Encoder)
        assert np.allclose(model.logits(["w5 w17 w42"])[0], expected, atol=1e-4)
    capsys.readouterr()
    assert cli.run_verb("run", [str(output), "w5 w17 w42"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == "abc"[int(expected.argmax())]

    again = compiled(source, tmp_path / "embed", "cpu-fp32", "--task", "default")
    capsys.readouterr()
    assert cli.run_verb("embed", [str(again), "w5 w17", "w9", "--json"]) == 0
    assert np.array(json.loads(capsys.readouterr().out)["embeddings"]).shape == (2, 64)
    assert cli.run_verb("run", [str(again), "w5"]) == 2, "feature extraction predicts nothing"


def test_the_verbs_on_a_decoder(
    tmp_path: Path, artifact: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    output = str(shutil.copytree(artifact, tmp_path / "out"))
    capsys.readouterr()

    def call(*arguments: str) -> tuple[int, str, str]:
        code = cli.run_verb(arguments[0], arguments[1:])
        out, err = capsys.readouterr()
        return code, out, err

    code, out, err = call("run", output, "w5 w6 w7", "-n", "4")
    assert code == 0
    assert out.split()
    assert "new at" in err
    answer = json.loads(call("run", output, "w5 w6 w7", "-n", "4", "--json")[1])
    assert answer["text"].strip() == out.strip()
    assert answer["stats"]["prompt_tokens"] == 3
    assert call("run", output, " ".join(["w5"] * 80))[0] == 2, "context overflow"
    assert call("embed", output, "w5")[0] == 2, "it is a decoder"
    monkeypatch.setattr(sys, "stdin", io.StringIO("w5 w6 w7"))
    assert json.loads(call("run", output, "-n", "4", "--json")[1])["text"] == answer["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("w5"))
    code, _, err = call("chat", output)
    assert code == 2
    assert "chat template" in err
    assert json.loads(call("verify", output, "--json")[1])["ok"] is True
    assert json.loads(call("inspect", output, "--json")[1])["fused"]["com.microsoft.GroupQueryAttention"] == 3

    data = Path(output, "onnx", "model.onnx_data")
    flipped = bytearray(data.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    data.write_bytes(flipped)
    for verb in ("verify", "run"):
        code, _, err = call(verb, output, *(["w5"] if verb == "run" else []))
        assert code == 2
        assert "model.onnx_data" in err


def test_an_artifact_is_replaced_whole_and_only_an_artifact(
    tmp_path: Path, folder: Callable[..., Path], artifact: Path, capsys: pytest.CaptureFixture[str]
):
    output = shutil.copytree(artifact, tmp_path / "out")
    first = json.loads((output / "artifact.json").read_text())
    compiled(folder("llama"), output, "cpu-fp32", "--without", "pack-qkv")
    second = json.loads((output / "artifact.json").read_text())
    assert first["pipeline"] != second["pipeline"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("years")
    capsys.readouterr()
    refused = ["compile", str(folder("llama")), "-t", "cpu-fp32", "-o", str(tmp_path / "mine"), "--no-proof"]
    assert cli.run_verb(refused[0], refused[1:]) == 2
    assert "not an artifact" in capsys.readouterr().err
    assert os.listdir(tmp_path / "mine") == ["thesis"]


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(tmp_path: Path, folder: Callable[..., Path], sent: signal.Signals, code: int):
    """The export is under way; afterwards nothing is left."""
    command = [sys.executable, "-c", "from onnxforge.compiler.cli import compile_main; compile_main()"]
    options = [str(folder("llama")), "-t", "cpu-fp32", "-o", str(tmp_path / "out"), "--no-proof"]
    child = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert "open" in child.stderr.readline()
    assert any(name.startswith(".out.tmp-") for name in os.listdir(tmp_path))
    time.sleep(0.3)
    child.send_signal(sent)
    _, rest = child.communicate(timeout=60)
    assert child.returncode == code, rest
    what = "interrupted" if sent == signal.SIGINT else "terminated"
    assert rest.splitlines()[-1] == f"{what}; nothing was changed at {tmp_path / 'out'}"
    assert "Traceback" not in rest
    assert os.listdir(tmp_path) == []


def test_an_artifact_that_drafts_for_itself(folder: Callable[..., Path], tmp_path: Path):
    """Searched, written beside the others on one weight file, checked, and loaded by who asks for it."""
    settings = [f"--set=search-skipped.{name}" for name in ("tokens=24", "alone=4", "together=6")]
    out = compiled(folder("llama"), tmp_path / "out", "cpu-fp32", "--draft", "layer-skip", *settings)
    manifest = read_manifest(out)
    assert [r.path for r in manifest.files if r.path.endswith("_data")] == ["onnx/model.onnx_data"]
    assert manifest.speculation is not None
    assert manifest.speculation.draft_graph == SKIP_GRAPH
    assert f"| `{SKIP_GRAPH}` |" in (out / "README.md").read_text()
    with load(out, threads=1) as plain, load(out, threads=1, draft="layer-skip") as model:
        assert isinstance(plain, Decoder)
        assert isinstance(model, Decoder)
        wanted = plain.generate([5, 6, 7], max_new_tokens=30, min_rows=2, max_draft_tokens=0, do_sample=False)
        got = model.generate([5, 6, 7], max_new_tokens=30, do_sample=False)
    assert got.token_ids == wanted.token_ids
    assert got.stats.speculative is not None
    assert got.stats.speculative.draft_forward_passes > 0


def test_an_artifact_with_a_draft_model_inside(folder: Callable[..., Path], tmp_path: Path):
    """Pruned from the same source, an artifact that loads alone, and drafts for who asks for it."""
    wished = "prune-layers=1,recover=none"
    out = compiled(folder("llama"), tmp_path / "out", "cpu-fp32", "--draft", wished)
    manifest = read_manifest(out)
    assert manifest.speculation is not None
    assert manifest.speculation.draft_model == DRAFT_FOLDER
    assert f"| `{DRAFT_FOLDER}/` |" in (out / "README.md").read_text()
    inner = read_manifest(out / DRAFT_FOLDER)
    assert (inner.name, inner.target) == ("out-draft", "cpu-fp32-draft")
    assert len(str(inner.summary["removed_layers"]).split("+")) == 1
    assert json.loads((out / "report" / "recipe.json").read_text())["target"]["draft"] == wished
    with (
        load(out, threads=1, verify="full") as plain,
        load(out / DRAFT_FOLDER, threads=1) as small,
        load(out, threads=1, draft="draft-model") as model,
    ):
        assert isinstance(plain, Decoder)
        assert isinstance(small, Decoder)
        assert isinstance(model, Decoder)
        assert len(small.graph.cache) == len(plain.graph.cache) - 2
        wanted = plain.generate([5, 6, 7], max_new_tokens=30, min_rows=2, max_draft_tokens=0, do_sample=False)
        got = model.generate([5, 6, 7], max_new_tokens=30, do_sample=False)
    assert got.token_ids == wanted.token_ids
    assert got.stats.speculative is not None
    assert got.stats.speculative.draft_forward_passes > 0
    weights = out / DRAFT_FOLDER / "onnx" / "model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    with pytest.raises(ArtifactError, match=r"draft/onnx/model\.onnx_data: changed"):
        load(out)
