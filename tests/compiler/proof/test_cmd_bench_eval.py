import csv
import io
import json

import pytest
import typer

from onnxforge.compiler.cli import run_app
from onnxforge.compiler.cmd_bench import bench
from onnxforge.compiler.cmd_eval import eval_


@pytest.fixture
def onnxforge(capsys):
    """Run a verb in this process; returns (exit code, stdout, stderr)."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command("bench")(bench)
    app.command("eval")(eval_)

    def run(*arguments):
        code = run_app(app, [str(a) for a in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_bench_prints_llama_benchs_columns(make_artifact, onnxforge):
    code, out, _ = onnxforge("bench", make_artifact("a"), "-p", 16, "-n", 4, "-r", 2, "--threads", 1)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.strip().splitlines()]
    assert code == 0
    assert lines[0] == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [line[5] for line in lines[2:]] == ["pp16", "tg4"]
    assert [line[3:5] for line in lines[2:]] == [["CPU", "1"]] * 2
    assert all(float(line[6].split(" ± ")[0]) > 0 for line in lines[2:])


def test_bench_json_and_csv_hold_the_samples(make_artifact, onnxforge):
    folder = make_artifact("a")
    asked = ("bench", folder, "-p", 16, "-p", 8, "-n", 0, "-d", 4, "-r", 2, "-o")
    rows = json.loads(onnxforge(*asked, "json")[1])
    assert [row["test"] for row in rows] == ["pp16 @ d4", "pp8 @ d4"]
    assert all(len(row["samples_ns"]) == 2 and row["avg_ns"] > 0 for row in rows)
    assert rows[0]["avg_ts"] == pytest.approx(sum(rows[0]["samples_ts"]) / 2)
    table = list(csv.DictReader(io.StringIO(onnxforge(*asked, "csv")[1])))
    assert [row["n_prompt"] for row in table] == ["16", "8"]


def test_bench_takes_lists_as_llama_bench_does(make_artifact, onnxforge):
    asked = ("bench", make_artifact("a"), "-p", "8,16", "-p", 4, "-n", "0", "-d", "0,2", "-r", 1, "--json")
    rows = json.loads(onnxforge(*asked)[1])
    assert [(row["n_depth"], row["n_prompt"]) for row in rows] == [(d, p) for d in (0, 2) for p in (8, 16, 4)]
    for wrong, word in (("8,", ""), ("8;16", "8;16"), ("-4", "-4"), ("٣", "٣"), ("1" * 5000, "1" * 5000)):
        code, _, err = onnxforge("bench", make_artifact("a"), f"--n-prompt={wrong}")
        assert (code, f"-p holds {word!r}; give whole numbers with commas" in err) == (2, True)


def test_bench_refuses_what_does_not_fit(make_artifact, onnxforge):
    code, _, err = onnxforge("bench", make_artifact("a"), "-p", 512)
    assert (code, "pp512 needs more than the model's context of 96" in err) == (2, True)
    code, _, err = onnxforge("bench", make_artifact("a"), "-p", 0, "-n", 0)
    assert (code, "nothing to measure" in err) == (2, True)


def test_bench_of_an_encoder_counts_sentences(make_artifact, onnxforge):
    code, out, _ = onnxforge("bench", make_artifact("a", kind="encoder"), "-r", 1)
    assert code == 0
    assert "encode64" in out


def test_eval_prints_llama_perplexitys_line(make_artifact, onnxforge, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the value of the object is the name of a function and it is not a class " * 20)
    code, out, _ = onnxforge("eval", make_artifact("a"), "--ppl", text, "--window", 32)
    assert code == 0
    assert out.splitlines()[0].startswith("text.txt (sha256 ")
    assert out.splitlines()[1].startswith("PPL = ")
    assert " +/- " in out.splitlines()[1]


def test_eval_json_has_perplexity_and_divergence(make_artifact, onnxforge):
    folder, base = make_artifact("a", 0.01), make_artifact("base")
    asked = ("eval", folder, "--window", 32, "--windows", 3, "--json")
    alone = json.loads(onnxforge(*asked)[1])
    held = json.loads(onnxforge(*asked, "--kl", base)[1])
    assert alone["perplexity"] == held["perplexity"]
    assert (alone["window"], alone["stride"], alone["windows"], alone["tokens"]) == (32, 32, 3, 93)
    assert 0 < alone["dropped_tokens"] < 32
    assert held["kl"] > 0
    assert 0 < held["top1"] <= 1
    assert held["ratio"] == pytest.approx(held["perplexity"] / held["base_perplexity"])


def test_eval_refuses_an_encoder_and_a_missing_text(make_artifact, onnxforge, tmp_path):
    code, _, err = onnxforge("eval", make_artifact("a", kind="encoder"))
    assert (code, "decoder's measure" in err) == (2, True)
    code, _, err = onnxforge("eval", make_artifact("b"), "--ppl", tmp_path / "none.txt")
    assert (code, "cannot be read" in err) == (2, True)


@pytest.mark.parametrize("verb", ["bench", "eval"])
def test_what_is_measured_is_what_was_written(verb, onnxforge, make_artifact):
    folder = make_artifact("a")
    weights = folder / "onnx" / "model.onnx_data"
    data = bytearray(weights.read_bytes())
    data[100] ^= 1
    weights.write_bytes(data)
    code, out, err = onnxforge(verb, folder)
    assert (code, out) == (2, "")
    assert "model.onnx_data: changed" in err


def test_a_base_that_is_an_encoder_is_refused(onnxforge, make_artifact):
    code, _, err = onnxforge("eval", make_artifact("a"), "--kl", make_artifact("b", kind="encoder"))
    assert code == 2
    assert "perplexity is a decoder's measure" in err
