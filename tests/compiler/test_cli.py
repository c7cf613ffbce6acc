"""The command line from outside: results on stdout, prose on stderr, one paragraph and an exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.errors import BudgetMissed, PassFailed, PublishRefused, RequestRefused
from onnxforge.compiler.failures import explain, one_paragraph
from onnxforge.compiler.request import CompileRequest
from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.passes.base import PassRefused
from onnxforge.runtimes.errors import (
    ArtifactError,
    ContextOverflow,
    NumericalError,
    RequestError,
)

GRAPH = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
g (float[n, 4] x) => (float[n, 4] y) { a = MatMul (x, w) y = com.microsoft.Gelu (a) }
"""


def graph(path: Path, *, plain: bool = False) -> Path:
    text = GRAPH.replace("com.microsoft.Gelu", "Relu") if plain else GRAPH
    model = ir.from_onnx_text(text, initializers=[ir.tensor(np.ones((4, 4), np.float32), name="w")])
    ir.save(model, path)
    return path


def call(capsys: pytest.CaptureFixture[str], verb: str, *arguments: str) -> tuple[int, str, str]:
    code = cli.run_verb(verb, arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_dry_run_prints_a_recipe_that_config_replays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    edits = ("--set", "quantize-weights.bits=4", "--without", "pack-qkv", "--task", "fill-mask")
    edits += ("--calibration", "org/data:test:body")
    code, out, err = call(capsys, "compile", "some/model", "-t", "cpu-int8", *edits, "--dry-run")
    assert (code, err) == (0, "")
    recipe = json.loads(out)
    assert recipe["model"] == "some/model"
    assert any(text.startswith("quantize-weights{bits=4") for text in recipe["target"]["passes"])
    assert "pack-qkv" not in recipe["target"]["passes"]
    assert recipe["target"]["calibration"] == "org/data:test:body"
    (tmp_path / "recipe.json").write_text(out)
    assert call(capsys, "compile", "--config", str(tmp_path / "recipe.json"), "--dry-run") == (0, out, "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("m", "-t", "cpu-in8", "-o", "x"), "did you mean `cpu-int8`"),
        (("m", "-t", "cpu-int8", "--without", "fuse-attn", "-o", "x"), "did you mean `fuse-attention`"),
        (("m", "-t", "cpu-int8", "--set", "quantize-weights.bit=4", "-o", "x"), "did you mean `bits`"),
        (("m", "-t", "cpu-int8", "--set", "quantize-weights.bits=four", "-o", "x"), "wants int, not `four`"),
        (("m", "-t", "cpu-int8", "--config", "r.json", "-o", "x"), "not both"),
        (("m", "-o", "x"), "--target cpu-int8"),
        (("-t", "cpu-int8", "-o", "x"), "Say what to compile"),
        (("m", "-t", "cpu-int8", "-o", ""), "it is empty; say where the artifact goes"),
        (("m", "-t", "cpu-int8", "-o", "x", "--no-proof", "--eval-text", "no.txt"), "no.txt cannot be read"),
        (("--config", "nowhere.json", "-o", "x"), "cannot be read"),
    ],
)
def test_compile_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
):
    code, out, err = call(capsys, "compile", *arguments)
    assert code == 2
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, "one paragraph"


def test_a_forgotten_output_is_a_usage_error(capsys: pytest.CaptureFixture[str]):
    code, _, err = call(capsys, "compile", "m", "-t", "cpu-int8")
    assert code == 2
    assert "-o" in err


def test_json_errors_go_to_stdout_too(capsys: pytest.CaptureFixture[str]):
    code, out, err = call(capsys, "compile", "m", "-t", "nothing", "-o", "x", "--json")
    error = json.loads(out)["error"]
    assert code == error["exit_code"] == 2
    assert error["kind"] == "RequestRefused"
    assert error["message"] in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("run", "x", "--thread", "3"), "did you mean `--threads`"),
        (("run", "x", "-Q"), "No such option: -Q."),
        (("run",), "Missing argument 'DIR'. See `onnxforge run --help`."),
        (("run", "x", "-n", "many"), "'-n': Input"),
        (("inspect",), "give one PATH, --diff A B, or --prunable MODEL."),
        (("compile", "m", "-t", "cpu-int8"), "-o DIR."),
        (("targets", "extra"), "extra"),
    ],
)
def test_usage_errors_are_told_like_every_other(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
):
    verb, *rest = arguments
    code, out, err = call(capsys, verb, *rest, "--json")
    error = json.loads(out)["error"]
    assert code == error["exit_code"] == 2
    assert error["kind"] == "UsageError"
    assert says in error["message"]
    assert err == f"error: {error['message']}\n"
    assert call(capsys, verb, *rest)[1:] == ("", err), "without --json only stderr"


def test_the_folder_one_stands_in_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Path] = []

    def compiled(request: CompileRequest, **_: object) -> None:
        asked.append(request.output)
        raise RequestRefused("enough")

    monkeypatch.setattr("onnxforge.compiler.driver.compile_model", compiled)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "..", "out", "./out/"):
        assert cli.run_verb("compile", ["m", "-t", "cpu-fp32", "-o", name]) == 2
    assert asked == [tmp_path / "here", tmp_path, Path("out"), Path("out")]


def test_debug_raises():
    with pytest.raises(RequestRefused):
        cli.run_verb("compile", ["m", "-t", "nothing", "-o", "x", "--debug"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SourceError("x"), 2),
        (UnsupportedModel("x"), 2),
        (PassRefused("x"), 2),
        (RequestRefused("x"), 2),
        (PublishRefused("x"), 2),
        (ArtifactError("x"), 2),
        (ContextOverflow("x"), 2),
        (RequestError("x"), 2),
        (BudgetMissed("x"), 3),
        (PassFailed("x"), 1),
        (NumericalError("x"), 1),
        (MemoryError(), 1),
        (ValueError("x"), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error: Exception, code: int):
    assert explain(error).exit_code == code
    assert explain(error).message


def test_messages_cannot_drive_the_terminal():
    assert one_paragraph("a\x1b[31mb\nc\td\x07") == "a [31mb c d"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("fetch it again.. Fetch it.", "fetch it again. Fetch it."),
        ("(a) x.; (b) y..", "(a) x; (b) y."),
        ("no `x`..", "no `x`."),
        ("and so on... Then", "and so on... Then"),
        ("a path ../x or .. or x/.. stays", "a path ../x or .. or x/.. stays"),
    ],
)
def test_no_sentence_ends_twice(text: str, told: str):
    assert one_paragraph(text) == told


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxforge.compiler.driver.compile_model", interrupted)
    assert cli.run_verb("compile", ["m", "-t", "cpu-fp32", "-o", "x"]) == 130


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_that_meets_a_destructor_is_not_lost(sent: str, code: int):
    """Python drops what is raised in ``__del__``, and imports of regex and torch run thousands of those."""
    script = f"""
import signal, time
from onnxforge.compiler import cli

class Dying:
    def __del__(self):
        signal.raise_signal(signal.{sent})

def verb() -> None:
    Dying()
    time.sleep(30)

cli._VERBS = {{"compile": verb}}
cli.sys.argv = ["compile"]
cli.compile_main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.split(";")[0].strip()) == (
        code,
        "interrupted" if code == 130 else "terminated",
    )


def test_an_interrupt_says_what_is_there_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interrupted_late(*_: object, **__: object) -> None:
        (tmp_path / "artifact.json").write_text("{}")
        raise SystemExit(143)

    options = ("m", "-t", "cpu-fp32", "-o", str(tmp_path))
    monkeypatch.setattr("onnxforge.compiler.driver.compile_model", interrupted)
    assert call(capsys, "compile", *options) == (130, "", f"interrupted; nothing was changed at {tmp_path}\n")
    monkeypatch.setattr("onnxforge.compiler.driver.compile_model", interrupted_late)
    told = f"terminated; the new artifact is whole at {tmp_path}\n"
    assert call(capsys, "compile", *options) == (143, "", told)


def test_targets(capsys: pytest.CaptureFixture[str]):
    code, out, _ = call(capsys, "targets", "--json")
    listed = {target["name"]: target for target in json.loads(out)}
    assert code == 0
    assert {"cpu-fp32", "cpu-int8"} <= set(listed)
    assert listed["cpu-int8"]["budget"]
    _, page, _ = call(capsys, "targets")
    assert all(name in page for name in listed)


def test_doctor(capsys: pytest.CaptureFixture[str]):
    code, out, _ = call(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["versions"]["onnxruntime"] != "absent"
    assert "CPUExecutionProvider" in found["onnxruntime"]["providers"]
    assert {"cpu", "cores", "memory", "features"} <= set(found["machine"])


def test_inspect_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = graph(tmp_path / "m.onnx")
    code, out, _ = call(capsys, "inspect", str(path), "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ops"] == {"MatMul": 1, "com.microsoft.Gelu": 1}
    assert found["fused"] == {"com.microsoft.Gelu": 1}
    assert found["weights"] == {"FLOAT": [1, 64]}
    assert found["opsets"] == {"": 23, "com.microsoft": 1}
    assert found["inputs"] == ["x: float [n, 4]"]
    _, page, _ = call(capsys, "inspect", str(path))
    assert "com.microsoft.Gelu" in page
    assert "FLOAT" in page


def test_inspect_compares(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before, after = graph(tmp_path / "a.onnx", plain=True), graph(tmp_path / "b.onnx")
    _, out, _ = call(capsys, "inspect", "--diff", str(before), str(after), "--json")
    assert json.loads(out)["ops"] == {"Relu": [1, 0], "com.microsoft.Gelu": [0, 1]}
    _, page, _ = call(capsys, "inspect", "--diff", str(before), str(after))
    assert "1 -> 0      Relu" in page


def test_inspect_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 64)
    assert call(capsys, "inspect", str(tmp_path / "m.onnx"))[0] == 2
    assert call(capsys, "inspect", str(tmp_path / "nothing"))[0] == 2
    assert call(capsys, "inspect")[0] == 2


@pytest.mark.parametrize("damage", ["shortened", "absent"])
def test_inspect_refuses_weights_that_are_not_all_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
):
    text = GRAPH.replace("com.microsoft.Gelu", "Relu")
    model = ir.from_onnx_text(text, initializers=[ir.tensor(np.ones((4, 4), np.float32), name="w")])
    ir.save(model, tmp_path / "m.onnx", external_data="m.onnx_data", size_threshold_bytes=1)
    assert call(capsys, "inspect", str(tmp_path / "m.onnx"))[0] == 0
    if damage == "absent":
        (tmp_path / "m.onnx_data").unlink()
    else:
        (tmp_path / "m.onnx_data").write_bytes(b"\0" * 60)
    code, out, err = call(capsys, "inspect", str(tmp_path / "m.onnx"))
    assert (code, out) == (2, "")
    assert f"m.onnx_data: {'missing' if damage == 'absent' else '60 bytes'}, 64 expected at least" in err


@pytest.mark.parametrize("verb", ["run", "chat", "embed", "bench", "eval", "verify"])
def test_a_folder_that_is_no_artifact(tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str):
    code, out, err = call(capsys, verb, str(tmp_path / "nothing"))
    assert code == 2
    assert out == ""
    assert "nothing" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("verb", sorted(cli._VERBS))
def test_help(verb: str, capsys: pytest.CaptureFixture[str]):
    code, out, _ = call(capsys, verb, "--help")
    assert code == 0
    assert "--debug" in out
    assert "--json" in out or "--output" in out


def test_both_scripts_and_a_light_start():
    """Help must not wait for torch, and neither must `run`."""
    code = (
        "import sys, onnxforge.compiler.cli, onnxforge.compiler.loaded;"
        "print([m for m in ('torch', 'transformers', 'onnx', 'onnxscript') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    for script in ("onnxforge", "compile"):
        path = Path(sys.executable).with_name(script)
        shown = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
        assert "Usage" in shown.stdout
