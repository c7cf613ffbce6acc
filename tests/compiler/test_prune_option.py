"""`--prune` and `--recover`: the steps that they insert, the promises that they change, what they refuse."""

import json
from pathlib import Path

import pytest

from onnxforge.compiler import cli
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.pipeline import parse
from onnxforge.compiler.prune_option import with_pruning
from onnxforge.compiler.targets import TARGETS, Target

ROWS = {target.name: target for target in TARGETS}


def inserted(target: Target, text: str, recover: str | None = None) -> list[str]:
    """The new steps, less the comparisons, of which one is behind each that changes numbers."""
    passes = with_pruning(target, text, recover).passes
    parse(passes)
    changing = ("prune-", "distill-", "insert-qdq", "quantize-weights")
    assert [passes[at - 1] for at, step in enumerate(passes) if step == "compare-unpruned"] == [
        step for step in passes if step.startswith(changing)
    ]
    passes = tuple(step for step in passes if step != "compare-unpruned")
    new = [step for step in passes if step not in target.passes or step == "correlate-inputs"]
    at = passes.index(new[0])
    assert passes[:at] + passes[at + len(new) :] == target.passes
    return new


@pytest.mark.parametrize("name", ROWS)
def test_pruning_comes_behind_the_fusions_of_every_target(name):
    assert inserted(ROWS[name], "mlp=0.2") == [
        "correlate-inputs",
        "measure-damage{share=0.2}",
        "prune-mlp{share=0.2,uniform=false}",
    ]


def test_large_pieces_go_first_whatever_the_order():
    assert inserted(ROWS["cpu-int8"], "mlp=0.2,heads=0.1,layers=4") == [
        "rank-layers{count=4}",
        "prune-layers{count=4}",
        "correlate-inputs",
        "measure-damage{share=0.1,unit=heads}",
        "prune-heads{share=0.1}",
        "correlate-inputs",
        "measure-damage{share=0.2}",
        "prune-mlp{share=0.2,uniform=false}",
        "distill-blocks{train=false}",
    ]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("latency=0.7", ["prune-to-budget{metric=latency,ratio=0.7}"]),
        ("size=0.5", ["prune-to-budget{metric=size,ratio=0.5}"]),
        ("vocabulary=used", ["count-tokens", "prune-vocabulary"]),
        ("vocabulary=0.5", ["count-tokens", "prune-vocabulary{share=0.5}"]),
    ],
)
def test_budgets_and_vocabularies(text, steps):
    new = inserted(ROWS["cpu-int8"], text)
    assert new == steps


def test_attentions_alone_and_shares_of_layers():
    steps = inserted(ROWS["cpu-fp32"], "attentions=3, layers=0.1, kv-heads=0.34")
    assert [step for step in steps if step.startswith(("prune-", "distill-"))] == [
        "prune-layers{count=0.1}",
        "prune-layers{count=3,unit=attention}",
        "prune-heads{share=0.34,unit=group}",
        "distill-blocks{train=false}",
    ]


@pytest.mark.parametrize(
    ("recover", "last"),
    [
        ("none", "prune-mlp{share=0.2,uniform=false,refit=false}"),
        ("refit", "prune-mlp{share=0.2,uniform=false}"),
        ("distill", "distill-blocks{minutes=10}"),
        ("distill=2.5", "distill-blocks{minutes=2.5}"),
        ("distill-logits=30", "distill-logits{minutes=30}"),
    ],
)
def test_recovery(recover, last):
    assert inserted(ROWS["cpu-int4"], "mlp=0.2", recover)[-1] == last


@pytest.mark.parametrize(
    ("recover", "steps"),
    [
        ("none", []),
        ("refit", ["distill-blocks{train=false}"]),
        ("distill=3", ["distill-blocks{train=false}", "distill-blocks{minutes=3}"]),
        ("distill-logits=3", ["distill-blocks{train=false}", "distill-logits{minutes=3}"]),
    ],
)
def test_layers_are_refitted_by_the_stream(recover, steps):
    assert inserted(ROWS["cpu-fp32"], "layers=4", recover)[2:] == steps


def test_promises_of_equality_give_way_and_others_widen():
    assert {line.text() for line in with_pruning(ROWS["cpu-fp32"], "mlp=0.2").budget} == {
        "decoding_max_relative <= 0.0001",
        "perplexity_ratio <= 1.5",
        "cosine >= 0.9",
    }


@pytest.mark.parametrize(
    ("prune", "recover", "said"),
    [
        ("", None, "say what"),
        ("mlb=0.2", None, "did you mean `mlp`"),
        ("mlp", None, "wants a share between 0 and 1"),
        ("mlp=4", None, "wants a share between 0 and 1"),
        ("mlp=nan", None, "wants a share"),
        ("layers=2.5", None, "or how many"),
        ("layers=inf", None, "or how many"),
        ("mlp=0.1,mlp=0.2", None, "there twice"),
        ("latency=0.7,mlp=0.1", None, "give it alone"),
        ("latency=2", None, "wants a share"),
        ("mlp=0.2", "magic", "no such recovery"),
        ("mlp=0.2", "refit=3", "takes no minutes"),
        ("mlp=0.2", "distill=soon", "write the minutes"),
    ],
)
def test_what_means_nothing_is_refused(prune, recover, said):
    with pytest.raises(RequestRefused, match=said):
        with_pruning(ROWS["cpu-int8"], prune, recover)


def test_the_command_line_plans_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert cli.run_verb("compile", ["minilm-l6", "-t", "cpu-fp32", "--prune", "mlp=0.25", "--dry-run"]) == 0
    planned = json.loads(capsys.readouterr().out)["target"]
    assert "prune-mlp{share=0.25,uniform=false}" in planned["passes"]
    assert cli.run_verb("compile", ["minilm-l6", "-t", "cpu-fp32", "--recover", "distill", "--dry-run"]) == 2
    assert "nothing is pruned" in capsys.readouterr().err
