"""Targets: the table, the user's own files, and recipes."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxforge.compiler import pipeline
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.proof_types import METRICS
from onnxforge.compiler.recipe import Recipe, read_recipe, to_json
from onnxforge.compiler.target_file import budget_line, find_target, load_target, target_from, to_mapping
from onnxforge.compiler.targets import TARGETS, Bound, BudgetLine, Expectation, Target

MINE = """
name = "mine"
extends = "cpu-int8"
budget = ["perplexity_ratio <= 1.01", "cosine>=0.999"]
session = { "session.intra_op.allow_spinning" = "0" }
[expects]
decoder = ["fuse-attention:GroupQueryAttention"]
"""


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_the_table(target: Target):
    assert find_target(target.name) is target
    assert target_from(to_mapping(target), "here") == target
    names = [p.pass_name() for p in pipeline.parse(target.passes)]
    for expected in (e for kind in target.expects.values() for e in kind):
        assert expected.made_by in names
    assert {line.metric for line in target.budget} <= set(METRICS)
    assert target.budget, "a target promises something"


def test_names_are_unique():
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_a_file_of_the_users_own(tmp_path: Path):
    (tmp_path / "mine.toml").write_text(MINE)
    mine, base = find_target(str(tmp_path / "mine.toml")), find_target("cpu-int8")
    assert mine == dataclasses.replace(
        base,
        name="mine",
        budget=(
            BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.01),
            BudgetLine("cosine", Bound.AT_LEAST, 0.999),
        ),
        session={"session.intra_op.allow_spinning": "0"},
        expects={"decoder": (Expectation("GroupQueryAttention", "fuse-attention"),)},
    )


def test_calibration_data_beside_the_file_is_found(tmp_path: Path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "chats.jsonl").write_text("{}")
    for named, found in (
        ("chats.jsonl", str(tmp_path / "here" / "chats.jsonl")),
        ("elsewhere.jsonl", "elsewhere.jsonl"),
        ("self", "self"),
    ):
        (tmp_path / "here" / "t.toml").write_text(
            f'name = "x"\npasses = ["calibrate"]\ncalibration = "{named}"'
        )
        target = load_target(tmp_path / "here" / "t.toml")
        assert target.calibration == found
        assert target_from(to_mapping(target), "here") == target


def test_a_target_may_refuse_a_kind_of_model():
    raw = to_mapping(find_target("trt-int8")) | {"refuses": {"encoder": "no reason"}}
    assert target_from(raw, "here").refuses == {"encoder": "no reason"}
    with pytest.raises(RequestRefused, match=r"`refuses\.painter` is about no kind of model"):
        target_from(raw | {"refuses": {"painter": "no"}}, "here")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = [", "cannot be read"),
        ('name = "x"', "`passes` or a target that it `extends`"),
        ('extends = "cpu-int8"', "needs a `name`"),
        ('name = "x"\nextends = "cpu-int9"', "did you mean `cpu-int8`"),
        ('name = "x"\npases = ["cleanup"]', "a target has no `pases`; did you mean `passes`"),
        ('name = "x"\npasses = "cleanup"', "`passes` is to be a list"),
        ('name = "x"\npasses = [1]', "`passes` is to be text, not 1"),
        ('name = "x"\npasses = ["a"]\nbudget = ["perplexity <= 1"]', "did you mean `perplexity_ratio`"),
        ('name = "x"\npasses = ["a"]\nbudget = ["cosine = 1"]', "is no budget line"),
        ('name = "x"\npasses = ["a"]\nbudget = ["cosine <= low"]', "is no budget line"),
        ('name = "x"\npasses = ["a"]\nsession = { a = 1 }', "`session.a` is to be text"),
        ('name = "x"\npasses = ["a"]\ncalibration = 1', "`calibration` is to be text"),
        ('name = "x"\npasses = ["a"]\nexpects = { decodr = [] }', "write decoder or encoder"),
        ('name = "x"\npasses = ["a"]\nexpects = { decoder = ["GQA"] }', "pass-name:OperatorType"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "t.toml").write_text(text)
    with pytest.raises(RequestRefused, match=says):
        load_target(tmp_path / "t.toml")


def test_a_target_that_does_not_exist(tmp_path: Path):
    with pytest.raises(RequestRefused, match=r"no target `cpu-in8`; did you mean `cpu-int8`"):
        find_target("cpu-in8")
    with pytest.raises(RequestRefused, match="cannot be read"):
        find_target(str(tmp_path / "nowhere.toml"))


@given(
    st.builds(
        BudgetLine,
        metric=st.sampled_from(sorted(METRICS)),
        bound=st.sampled_from(Bound),
        limit=st.sampled_from([0.0, 1e-5, 0.001, 0.99, 1.03, 12.0]),
    )
)
def test_budget_lines_survive_their_text(line: BudgetLine):
    assert budget_line(line.text(), "here") == line


def test_a_budget_line_holds():
    assert BudgetLine("cosine", Bound.AT_LEAST, 0.9).holds(0.9)
    assert not BudgetLine("cosine", Bound.AT_LEAST, 0.9).holds(0.89)
    assert BudgetLine("max_abs", Bound.AT_MOST, 1e-3).holds(1e-3)
    assert not BudgetLine("max_abs", Bound.AT_MOST, 1e-3).holds(float("nan"))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_recipes_survive_their_json(tmp_path: Path, target: Target):
    recipe = Recipe("org/name", target, task="fill-mask", revision="main")
    (tmp_path / "recipe.json").write_text(to_json(recipe))
    assert read_recipe(tmp_path / "recipe.json") == recipe


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "no recipe of format 1"),
        ({"extra": 1}, "a recipe has no `extra`"),
        ({"target": None}, "names no `target`"),
        ({"task": 3}, "`task` is to be text"),
    ],
)
def test_recipes_that_are_refused(tmp_path: Path, change: dict[str, object], says: str):
    content = json.loads(to_json(Recipe("m", TARGETS[0]))) | change
    (tmp_path / "recipe.json").write_text(json.dumps(content))
    with pytest.raises(RequestRefused, match=says):
        read_recipe(tmp_path / "recipe.json")
