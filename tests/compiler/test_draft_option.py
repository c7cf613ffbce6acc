"""``compile --draft``: what it does to a target, an artifact and its defaults."""

import json

import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.draft_model import DRAFT_FOLDER, draft_target
from onnxforge.compiler.draft_option import SKIP_GRAPH, SKIP_PASS, skips_layers, with_draft
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.prune_option import with_pruning
from onnxforge.compiler.speculation_option import check_artifact, unmeasured, with_speculation
from onnxforge.compiler.target_file import find_target, target_from
from onnxforge.compiler.text_io_option import with_text_io
from onnxforge.passes.add_speculative_loop import MARKED
from onnxforge.passes.skip_layers import SkipLayers


def test_the_names_are_those_of_the_pass():
    assert (SkipLayers.pass_name(), SkipLayers.file) == (SKIP_PASS, SKIP_GRAPH)
    assert MARKED in with_draft(find_target("cpu-int8"), "layer-skip").passes[-1]


def test_a_search_comes_before_the_loop_and_numbers_replace_it():
    target = find_target("cpu-int8")
    assert not skips_layers(target)
    searched = with_draft(target, "layer-skip")
    loop = "add-speculative-loop{branches=marked}"
    assert searched.passes[-3:] == ("search-skipped", "skip-layers", loop)
    told = with_draft(searched, "layer-skip=5+6")
    assert told.passes[-2:] == ("skip-layers{branches=5+6}", "add-speculative-loop{branches=5+6}")
    assert skips_layers(told)
    assert len(told.passes) == len(target.passes) + 1


@pytest.mark.parametrize("text", ["", "ngram", "layer-skip=", "build/draft"])
def test_other_words_are_refused(text):
    with pytest.raises(RequestRefused, match="write layer-skip"):
        with_draft(find_target("cpu-int8"), text)


@pytest.mark.parametrize("name", ["cuda-int8", "trt-int8"])
def test_targets_without_a_cache_to_share(name):
    with pytest.raises(RequestRefused, match="cannot share its cache"):
        with_draft(find_target(name), "layer-skip")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prune-layers=1.5", "wants a share"),
        ("prune-layers=0.6,prune-tails=2", "nothing that can be removed"),
        ("prune-mlp=0.2,layers=0.6", "is not understood"),
        ("prune-layers=0.6,recover=prayer", "no such recovery"),
        ("prune-vocabulary=0.5", "every token"),
    ],
)
def test_a_draft_model_that_cannot_be_cut_like_that(text, reason):
    with pytest.raises(RequestRefused, match=reason) as refused:
        with_draft(find_target("cpu-int8"), text)
    assert f"--draft {text}" in str(refused.value)


def test_a_draft_model_is_the_target_pruned_further():
    """It goes through the passes of its model, and makes none of the graphs beside it."""
    whole = with_pruning(find_target("cpu-int8"), "vocabulary=0.5,mlp=0.1")
    target = with_draft(with_text_io(whole), "prune-layers=0.6,prune-mlp=0.2,recover=distill=3")
    assert target.passes == with_text_io(whole).passes
    drafting = draft_target(target)
    assert "prune-layers{count=0.6}" in drafting.passes
    assert "distill-blocks{minutes=3}" in drafting.passes
    assert drafting.pass_names.index("prune-layers") < drafting.pass_names.index("prune-vocabulary")
    assert not {"add-speculative-loop", "add-text-io"} & set(drafting.pass_names)
    assert "add-text-io" in target.pass_names
    assert (drafting.draft, drafting.budget, drafting.speculation) == (None, (), 0)


def test_the_recipe_remembers_the_draft_model(capsys):
    options = ["m", "-t", "cpu-fp32", "--draft", "prune-layers=4", "--dry-run"]
    assert cli.run_verb("compile", options) == 0
    recipe = json.loads(capsys.readouterr().out)
    assert recipe["target"]["draft"] == "prune-layers=4"
    assert target_from(recipe["target"], "here").draft == "prune-layers=4"


def test_a_draft_model_that_was_not_measured_is_there_for_who_asks():
    target = with_draft(find_target("cpu-int8"), "prune-layers=4")
    for word, enabled in (("auto", False), ("off", False), ("4", True)):
        found = unmeasured(with_speculation(target, word))
        assert found is not None
        assert (found.draft_model, found.draft_graph) == (DRAFT_FOLDER, None)
        assert (found.drafter, found.enabled) == ("ngram", enabled)


def test_a_draft_model_needs_a_decoder():
    with pytest.raises(RequestRefused, match="needs a decoder to draft for"):
        check_artifact(with_draft(find_target("cpu-int8"), "prune-layers=4"), "feature-extraction", False)


def test_the_plan_says_it(capsys):
    assert cli.run_verb("compile", ["m", "-t", "cpu-fp32", "--draft", "layer-skip", "--dry-run"]) == 0
    assert "search-skipped" in json.loads(capsys.readouterr().out)["target"]["passes"]


def test_without_a_measurement_the_graph_is_there_for_who_asks():
    target = with_draft(find_target("cpu-int8"), "layer-skip=1")
    for word, enabled in (("auto", False), ("off", False), ("4", True)):
        found = unmeasured(with_speculation(target, word))
        assert found is not None
        assert (found.draft_graph, found.drafter, found.enabled) == (SKIP_GRAPH, "ngram", enabled)
