"""``compile --draft layer-skip``: what it does to a target, an artifact and its defaults."""

import json

import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.draft_option import SKIP_GRAPH, SKIP_PASS, has_draft, with_draft
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.speculation_option import unmeasured, with_speculation
from onnxforge.compiler.target_file import find_target
from onnxforge.passes.add_speculative_loop import MARKED
from onnxforge.passes.skip_layers import SkipLayers


def test_the_names_are_those_of_the_pass():
    assert (SkipLayers.pass_name(), SkipLayers.file) == (SKIP_PASS, SKIP_GRAPH)
    assert MARKED in with_draft(find_target("cpu-int8"), "layer-skip").passes[-1]


def test_a_search_comes_before_the_loop_and_numbers_replace_it():
    target = find_target("cpu-int8")
    assert not has_draft(target)
    searched = with_draft(target, "layer-skip")
    loop = "add-speculative-loop{branches=marked}"
    assert searched.passes[-3:] == ("search-skipped", "skip-layers", loop)
    told = with_draft(searched, "layer-skip=5+6")
    assert told.passes[-2:] == ("skip-layers{branches=5+6}", "add-speculative-loop{branches=5+6}")
    assert has_draft(told)
    assert len(told.passes) == len(target.passes) + 1


@pytest.mark.parametrize("text", ["", "ngram", "layer-skip=", "prune-layers=0.6", "build/draft"])
def test_other_words_are_refused(text):
    with pytest.raises(RequestRefused, match="write layer-skip"):
        with_draft(find_target("cpu-int8"), text)


@pytest.mark.parametrize("name", ["cuda-int8", "trt-int8"])
def test_targets_without_a_cache_to_share(name):
    with pytest.raises(RequestRefused, match="cannot share its cache"):
        with_draft(find_target(name), "layer-skip")


def test_the_plan_says_it(capsys):
    assert cli.run_verb("compile", ["m", "-t", "cpu-fp32", "--draft", "layer-skip", "--dry-run"]) == 0
    assert "search-skipped" in json.loads(capsys.readouterr().out)["target"]["passes"]


def test_without_a_measurement_the_graph_is_there_for_who_asks():
    target = with_draft(find_target("cpu-int8"), "layer-skip=1")
    for word, enabled in (("auto", False), ("off", False), ("4", True)):
        found = unmeasured(with_speculation(target, word))
        assert found is not None
        assert (found.draft_graph, found.drafter, found.enabled) == (SKIP_GRAPH, "ngram", enabled)
