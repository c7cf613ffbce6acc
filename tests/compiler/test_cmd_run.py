"""``run`` on a model of a small context: the default fits, and the advice is one that ``run`` can follow."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "runtimes"))

from tiny_artifacts import Form, write_decoder

from onnxforge.compiler import cli

CONTEXT = 24


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_decoder(tmp_path_factory.mktemp("run") / "small", Form(context=CONTEXT)))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict, str]:
    code = cli.run_verb("run", [*arguments, "--greedy", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def test_drafting_changes_no_token_and_is_counted(small: str, capsys: pytest.CaptureFixture[str]):
    plain = run(capsys, small, "hello", "-n", "12")[1]
    assert plain["stats"]["speculative"] is None
    for options in (
        ("--max-draft-tokens", "4"),
        ("--draft", small),
        ("--draft", small, "--max-draft-tokens", "2"),
    ):
        code, found, _ = run(capsys, small, "hello", "-n", "12", *options)
        assert code == 0
        assert found["text"] == plain["text"]
        stats = found["stats"]["speculative"]
        assert 0 < stats["rounds"] <= 11
        assert (stats["draft_forward_passes"] > 0) == ("--draft" in options)
    code = cli.run_verb("run", [small, "hello", "-n", "12", "--greedy", "--max-draft-tokens", "4"])
    assert code == 0
    assert "drafted tokens accepted" in capsys.readouterr().err
    assert cli.run_verb("run", [small, "hello", "-n", "1", "--greedy", "--max-draft-tokens", "4"]) == 0
    assert "drafted" not in capsys.readouterr().err, "one token takes no step that could draft"
    assert cli.run_verb("run", [small, "hello", "--max-draft-tokens", "24"]) == 2
    assert "max_draft_tokens is 24; pass a whole number from 0 (no drafts) to 23" in capsys.readouterr().err


def test_layer_skip_is_asked_of_the_artifact_itself(small: str, capsys: pytest.CaptureFixture[str]):
    assert cli.run_verb("run", [small, "hello", "--draft", "layer-skip"]) == 2
    assert f"{small} was compiled without layer skip" in capsys.readouterr().err


def test_without_a_number_what_fits_is_written(small: str, capsys: pytest.CaptureFixture[str]):
    code, found, _ = run(capsys, small, "hello")
    assert code == 0
    assert found["stats"]["prompt_tokens"] + found["stats"]["new_tokens"] <= CONTEXT
    assert found["finish_reason"] == "stop" or found["stats"]["new_tokens"] == CONTEXT - 6


def test_a_prompt_over_the_context_is_cut_on_request(small: str, capsys: pytest.CaptureFixture[str]):
    long = "x" * 100
    code, _, err = run(capsys, small, long)
    assert code == 2
    assert "`run --truncate`" in err
    for options in ((), ("-n", "3")):
        code, found, _ = run(capsys, small, long, "--truncate", *options)
        assert code == 0
        assert found["stats"]["prompt_tokens"] + (3 if options else CONTEXT // 2) == CONTEXT
