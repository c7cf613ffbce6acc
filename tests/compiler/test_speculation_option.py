"""``--speculation off|auto|N``: what it writes into the plan, and where it is refused."""

import dataclasses
import json

import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.driver import compile_model
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.proof_types import Proof
from onnxforge.compiler.recipe import read_recipe
from onnxforge.compiler.speculation_option import (
    as_text,
    check_artifact,
    check_speculation,
    draft_tokens,
    unmeasured,
    with_speculation,
)
from onnxforge.compiler.target_file import find_target, load_target
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.speculation import Speculation


@pytest.mark.parametrize(("text", "choice"), [("auto", None), ("off", 0), ("1", 1), (31, 31)])
def test_a_choice_is_read_and_written_back(text, choice):
    assert draft_tokens(text) == choice
    assert draft_tokens(as_text(choice)) == choice


@pytest.mark.parametrize("text", ["0", "32", "-1", "on", "", "4.5", "٣", True, 0])
def test_anything_else_is_refused(text):
    with pytest.raises(RequestRefused, match="write auto"):
        draft_tokens(text)


def test_the_choice_is_in_the_recipe_and_is_replayed(tmp_path, capsys):
    assert cli.run_verb("compile", ["m", "-t", "cpu-int8", "--speculation", "6", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["target"]["speculation"] == 6
    (tmp_path / "recipe.json").write_text(printed)
    assert read_recipe(tmp_path / "recipe.json").target.speculation == 6


def test_auto_is_what_every_target_does_unless_told(capsys):
    assert cli.run_verb("compile", ["m", "-t", "cpu-fp32", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["target"]["speculation"] == "auto"


def test_a_target_file_may_choose(tmp_path):
    for word, choice in (('"off"', 0), ("5", 5), ('"auto"', None)):
        (tmp_path / "t.toml").write_text(f'name = "t"\nextends = "cpu-int8"\nspeculation = {word}\n')
        assert load_target(tmp_path / "t.toml").speculation == choice
    (tmp_path / "t.toml").write_text('name = "t"\nextends = "cpu-int8"\nspeculation = [1]\n')
    with pytest.raises(RequestRefused, match="auto, off or a number"):
        load_target(tmp_path / "t.toml")


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-t", "cuda-fp16", "--speculation", "4"], "CUDAExecutionProvider"),
        (["-t", "cpu-fp32", "--without", "fuse-attention", "--speculation", "4"], "fuse-attention"),
        (["-t", "cpu-fp32", "--speculation", "many"], "auto"),
    ],
)
def test_what_cannot_be_had_is_refused_before_anything_runs(words, reason, capsys):
    assert cli.run_verb("compile", ["m", *words, "--dry-run"]) == 2
    assert reason in capsys.readouterr().err


def test_off_and_auto_are_allowed_everywhere():
    for text in ("off", "auto"):
        check_speculation(with_speculation(find_target("cuda-fp16"), text))
        check_artifact(with_speculation(find_target("cpu-int8"), text), "feature-extraction", False)
    with pytest.raises(RequestRefused, match="this feature-extraction graph is not"):
        check_artifact(with_speculation(find_target("cpu-int8"), "4"), "feature-extraction", False)


def test_without_a_proof_the_artifact_says_what_was_asked_for(parts, request_for, tmp_path):
    found = {}
    for choice in (None, 0):
        request = request_for(tmp_path / str(choice), proof=False)
        target = dataclasses.replace(request.target, speculation=choice)
        compile_model(dataclasses.replace(request, target=target), parts=parts)
        found[choice] = read_manifest(tmp_path / str(choice)).speculation
    assert found[None] is None
    assert found[0] is not None
    assert not found[0].enabled
    assert "--speculation off" in found[0].reason
    fixed = unmeasured(with_speculation(find_target("cpu-int8"), "4"))
    assert fixed is not None
    assert (fixed.enabled, fixed.max_draft_tokens) == (True, 4)
    assert "was measured" in fixed.reason


def test_a_number_for_a_graph_that_cannot_rewind_publishes_nothing(parts, request_for, tmp_path):
    request = request_for(tmp_path / "out", proof=False)
    target = dataclasses.replace(request.target, speculation=4)
    with pytest.raises(RequestRefused, match="GroupQueryAttention"):
        compile_model(dataclasses.replace(request, target=target), parts=parts)
    assert not (tmp_path / "out").exists()


def test_what_the_proof_decided_is_sealed(parts, request_for, tmp_path):
    decided = Speculation(False, 6, min_rows=1, step_cost=(1.0, 1.2), reason="it would not pay")
    proven = dataclasses.replace(parts, prove=lambda *_: Proof(speculation=decided))
    compile_model(request_for(tmp_path / "out"), parts=proven)
    assert read_manifest(tmp_path / "out").speculation == decided
