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
