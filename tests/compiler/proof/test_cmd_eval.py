"""`onnxforge eval`: what it prints, what JSON holds, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import typer
from tokenizers import Tokenizer

from onnxforge.compiler.cli import run_app
from onnxforge.compiler.cmd_eval import eval_
from onnxforge.compiler.proof_session import GraphSession

WORDS = "the value of the object is the name of a function and it is not a class "
SMALL = ("--ctx-size", 32, "--chunks", 3)


@pytest.fixture
def evaluate(capsys):
    """Run the verb in this process; returns (exit code, stdout, stderr)."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("eval")(eval_)
    app.command("other")(lambda: None)

    def run(*arguments):
        code = run_app(app, ["eval", *(str(a) for a in arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(WORDS * 20)
    return path


def reseal(folder: Path) -> Path:
    """The manifest again, after a file was changed."""
    import hashlib

    manifest = json.loads((folder / "artifact.json").read_text())
    for record in manifest["files"]:
        data = (folder / record["path"]).read_bytes()
        record |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "artifact.json").write_text(json.dumps(manifest))
    return folder


def test_the_last_line_is_llama_perplexitys(make_artifact, evaluate, text):
    code, out, err = evaluate(make_artifact("a"), "-f", text, "-c", 32)
    protocol, estimate = out.splitlines()
    assert code == 0
    assert protocol.startswith("text.txt (sha256 ")
    assert "windows of 32 tokens, stride 32, no BOS" in protocol
    assert re.fullmatch(r"Final estimate: PPL = \d+\.\d{4} \+/- \d+\.\d{5}", estimate)
    assert err.splitlines()[0].startswith("text.txt: window 1 of ")


def test_perplexity_is_that_of_the_definition(make_artifact, evaluate, text):
    """By hand: windows of 32 that overlap by half, the second half of each scored."""
    folder = make_artifact("a")
    asked = ("--ppl", text, "--window", 32, "--stride", 16, "--unscored", 16, "--json")
    found = json.loads(evaluate(folder, *asked)[1])
    session = GraphSession(folder)
    ids = np.array(session.tokenizer().encode(text.read_text()).ids)
    nlls = []
    for start in range(0, len(ids) - 32 + 1, 16):
        window = ids[start : start + 32]
        logits = session.logits(window[None, :]).astype(np.float64)
        scores = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        nlls += [-scores[at - 1, window[at]] for at in range(16, 32)]
    assert found["tokens"] == len(nlls)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nlls)), rel=1e-6)
    assert found["unscored"] == 16
    assert "the first 16 of each unscored" in found["protocol"]


def test_a_base_adds_the_divergence(make_artifact, evaluate):
    folder, base = make_artifact("a", 0.01), make_artifact("base")
    alone = json.loads(evaluate(folder, *SMALL, "--json")[1])
    held = json.loads(evaluate(folder, *SMALL, "--json", "--base", base)[1])
    assert held == json.loads(evaluate(folder, *SMALL, "--json", "--kl", base)[1])
    assert alone["perplexity"] == held["perplexity"]
    assert (alone["window"], alone["stride"], alone["windows"], alone["tokens"]) == (32, 32, 3, 93)
    assert 0 < alone["dropped_tokens"] < 32
    assert "kl" not in alone
    assert 0 < held["median_kl"] < held["kl"] < held["kl_percentiles"]["99.0"] <= held["max_kl"]
    assert 0 < held["top1"] <= held["top5"] <= 1
    assert held["ratio"] == pytest.approx(held["perplexity"] / held["base_perplexity"])
    assert held["texts"][0]["perplexity"] == held["perplexity"]
    lines = evaluate(folder, *SMALL, "--base", base)[1].splitlines()
    shown = {line.split(":")[0].strip(): line.split(":", 1)[1].strip() for line in lines if ":" in line}
    assert shown["Mean PPL(Q)/PPL(base)"].startswith(f"{held['ratio']:.6f} ± ")
    assert shown["Median  KLD"] == f"{held['median_kl']:.6f}"
    assert shown["99.0%   KLD"] == f"{held['kl_percentiles']['99.0']:.6f}"
    assert shown["Same top p"].startswith(f"{100 * held['top1']:.3f} ± ")


def test_an_artifact_is_at_no_distance_from_itself(make_artifact, evaluate):
    folder = make_artifact("a")
    found = json.loads(evaluate(folder, *SMALL, "--json", "--base", folder)[1])
    assert (found["ratio"], found["kl"], found["top1"], found["top5"]) == (1, 0, 1, 1)


def test_several_texts_give_a_row_each(make_artifact, evaluate, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a class is not the function of the object " * 30)
    folder, asked = make_artifact("a"), ("-f", text, "--ppl", other, "-c", 32)
    code, out, _ = evaluate(folder, *asked)
    assert code == 0
    assert out.count("Final estimate: PPL = ") == 2
    assert [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("|")] == [
        "text", "---" + "-" * 6, "text.txt", "other.txt",
    ]  # fmt: skip
    found = json.loads(evaluate(folder, *asked, "--json")[1])
    assert "perplexity" not in found
    alone = [json.loads(evaluate(folder, "-f", f, "-c", 32, "--json")[1]) for f in (text, other)]
    assert [row["perplexity"] for row in found["texts"]] == [row["perplexity"] for row in alone]


def test_decoding_a_few_tokens_a_run_says_the_same(make_artifact, evaluate):
    folder = make_artifact("a")
    whole, stepped = (json.loads(evaluate(folder, *SMALL, "--json", "-b", b)[1]) for b in (0, 5))
    assert stepped["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
    assert (whole["tokens_per_run"], stepped["tokens_per_run"]) == (0, 5)
    assert "decoded 5 tokens a run" in stepped["protocol"]


def test_an_encoder_is_held_against_its_base(make_artifact, evaluate):
    folder, base = make_artifact("a", 0.01, kind="encoder"), make_artifact("base", kind="encoder")
    found = json.loads(evaluate(folder, "--base", base, "--sentences", 9, "--json")[1])
    assert found["sentences"] == 9
    assert 0.9 < found["min_cosine"] <= found["mean_cosine"] == found["cosine"] < 1
    code, out, _ = evaluate(folder, "--base", base, "--sentences", 9)
    assert code == 0
    assert f": {found['mean_cosine']:.7f}" in out


def test_a_classifier_is_held_by_its_labels(make_artifact, evaluate):
    folder, base = make_artifact("a", 0.01, kind="classifier"), make_artifact("base", kind="classifier")
    code, out, _ = evaluate(folder, "--base", base)
    assert (code, "Same label" in out) == (0, True)


def test_what_does_not_fit_together_is_refused(make_artifact, evaluate):
    decoder, encoder = make_artifact("a"), make_artifact("b", kind="encoder")
    for asked, reason in (
        ((encoder,), "perplexity is a decoder's measure. Give --base DIR"),
        ((decoder, "--base", encoder), "holds a decoder and the base"),
        ((encoder, "--base", decoder), "holds an encoder and the base"),
        ((decoder, "-c", 97), "97 tokens does not fit the model's context of 96"),
        ((decoder, "-c", 32, "--unscored", 32), "32 unscored tokens in windows of 32"),
        ((decoder, "-c", 32, "--stride", 33), "0 < stride <= window"),
        ((decoder, "--base", decoder.parent / "nowhere"), "is not an artifact"),
        ((decoder, "--provider", "cuda"), "needs CUDAExecutionProvider"),
    ):
        code, out, err = evaluate(*asked)
        assert (code, out) == (2, ""), err
        assert reason in err
        assert "Traceback" not in err


def test_texts_that_cannot_be_scored_are_refused(make_artifact, evaluate, tmp_path):
    folder = make_artifact("a")
    (tmp_path / "word").write_text("the")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "blank").write_text(" \n")
    (tmp_path / "few").write_text(WORDS)
    for name, options, reason in (
        ("none", (), "cannot be read"),
        ("word", (), "has 1 tokens"),
        ("binary", (), "is not UTF-8"),
        ("blank", (), "is empty"),
        ("few", ("--unscored", 40), "none is left"),
    ):
        code, out, err = evaluate(folder, "-f", tmp_path / name, *options)
        assert (code, out) == (2, "")
        assert reason in err
    encoder = make_artifact("e", kind="encoder")
    code, _, err = evaluate(encoder, "--base", encoder, "-f", tmp_path / "word")
    assert (code, "no sentence" in err) == (2, True)


def test_another_vocabulary_is_refused(make_artifact, evaluate):
    folder, base = make_artifact("a"), make_artifact("base")
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["the"], vocabulary["of"] = vocabulary["of"], vocabulary["the"]
    path.write_text(json.dumps(tokenizer))
    code, _, err = evaluate(folder, "--base", reseal(base), *SMALL)
    assert code == 2
    assert "do not share a vocabulary: 200 and 200 tokens, 2 of them different ('of', 'the')" in err


def test_a_tokenizer_that_reads_otherwise_is_refused(make_artifact, evaluate):
    folder, base = make_artifact("a"), make_artifact("base")
    path = str(base / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    from tokenizers import pre_tokenizers

    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(path)
    code, _, err = evaluate(folder, "--base", reseal(base), *SMALL)
    assert (code, "read a text as different ids" in err) == (2, True)
