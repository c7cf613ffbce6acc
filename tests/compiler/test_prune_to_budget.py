"""`prune-to-budget`: the model is as small as asked, and what was tried is told."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler import pruning_trial
from onnxforge.compiler.calibration_data import attach, calibration_batches
from onnxforge.compiler.observe import graph_stats, run_passes
from onnxforge.compiler.pipeline import parse
from onnxforge.compiler.progress import describe
from onnxforge.compiler.prune_option import ahead_of_pruning
from onnxforge.compiler.prune_to_budget import ON_TRIAL, PruneToBudget
from onnxforge.compiler.pruning_section import pruning_section
from onnxforge.compiler.pruning_trial import compared, contestant, products_per_token
from onnxforge.compiler.step_progress import heard_by
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.unpruned import unpruned


@pytest.fixture
def fused_model(tiny_source, tiny_export):
    """``fused_model(family)``: behind the fusions, with data attached."""

    def make(family: str) -> ir.Model:
        model = tiny_export(family)
        attach(model, tiny_source(family))
        for step in parse(ahead_of_pruning(TARGETS[0])):
            step(model)
        return model

    return make


@pytest.mark.parametrize(
    ("family", "metric", "ratio"), [("llama", "size", 0.8), ("gpt2", "flops", 0.7), ("bert", "flops", 0.8)]
)
def test_the_budget_is_met_and_not_by_much_more(fused_model, family, metric, ratio):
    model = fused_model(family)
    measure = {"size": lambda m: graph_stats(m).weight_bytes, "flops": products_per_token}[metric]
    before = measure(model)
    with notes.listen() as seen:
        step = PruneToBudget(metric=metric, ratio=ratio, samples=1, tokens=16)
        step.requires(model)
        assert step(model).modified
    assert ratio - 0.15 < measure(model) / before <= ratio
    assert unpruned(model) is not None
    trials = [note for note in seen if note.what == "pruning on trial" and note.kind == "measured"]
    assert len(trials) > 6
    assert "together" in trials[-1].reason
    with contestant(model) as smaller, contestant(unpruned(model)) as whole:
        found = compared(whole, smaller, list(calibration_batches(model, 1, 16)))
    assert found.damage > 0
    assert np.isfinite(found.damage)


def test_only_the_units_that_are_allowed(fused_model):
    model = fused_model("llama")
    caches = [value.name for value in model.graph.inputs]
    PruneToBudget(metric="flops", ratio=0.9, units="mlp", samples=1, tokens=16)(model)
    assert [value.name for value in model.graph.inputs] == caches
    assert model.metadata_props.get("onnxforge.removed_layers") is None


def test_a_model_is_itself(fused_model):
    model = fused_model("llama")
    with contestant(model) as one, contestant(model) as other:
        found = compared(one, other, list(calibration_batches(model, 1, 16)))
    assert (found.damage, found.size, found.flops) == (pytest.approx(0, abs=1e-9), 1, 1)
    assert 0.2 < found.latency < 5


def test_the_search_is_a_short_line_and_a_table(fused_model):
    model, said = fused_model("llama"), []
    with heard_by(said.append):
        step = PruneToBudget(metric="size", ratio=0.8, units="layers+mlp", samples=1, tokens=16)
        ledger = run_passes(model, [step])
    assert said[:2] == ["trial 1 of 14, layers=0.034", "trial 2 of 14, layers=0.067"]
    assert said[14].startswith("together, ")
    (record,) = ledger.records
    line = describe(record)
    assert f", {len(record.measures)} measures, " in line
    assert len(line) < 80
    cuts = [note for note in record.matches if note.what == "pruned channels"]
    assert len(cuts) <= 5, "a copy's layers are not counted"
    section = pruning_section(ledger)
    rows = [row.split("|")[1:-1] for row in section.splitlines() if row.startswith("| `")]
    trials = [note for note in record.measures if note.what == ON_TRIAL]
    assert [row[0].strip() for row in rows] == [f"`{note.where}`" for note in trials]
    assert rows[-1][2].strip() == "of the size, together"
    assert float(rows[-1][1]) <= 0.8
    assert max(map(len, section.splitlines()[4:])) < 100


class Steps:
    """A contestant of which every step takes ``each`` seconds, and as long on the clock that is read."""

    answer, bytes, flops = "logits", 1, 1

    def __init__(self, clock: list[float], each: float) -> None:
        self.clock, self.each, self.made = clock, each, 0

    def seconds(self) -> float:
        self.made += 1
        self.clock[0] += self.each
        return self.each


@pytest.mark.parametrize(("each", "rounds"), [(0.01, 21), (0.5, 7), (60.0, 3)])
def test_a_small_model_is_timed_more_often(monkeypatch, each, rounds):
    clock = [0.0]
    monkeypatch.setattr(pruning_trial.time, "perf_counter", lambda: clock[0])
    whole, pruned = Steps(clock, each), Steps(clock, 2 * each)
    assert compared(whole, pruned, ()).latency == pytest.approx(2)
    assert (whole.made, pruned.made) == (rounds, rounds)
    assert clock[0] < 12 or rounds == 3


def test_what_no_combination_meets_is_refused_with_the_nearest(fused_model):
    with pytest.raises(PassRefused, match=r"no combination of what was tried comes to 0\.05 of the size"):
        PruneToBudget(metric="size", ratio=0.05, units="heads", samples=1, tokens=16)(fused_model("llama"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "speed"}, "metric is 'speed'; use one of latency"),
        ({"ratio": 1.0}, "ratio is 1.0"),
        ({"units": "mlp+tokens"}, "'tokens' is no unit"),
        ({"tokens": 1}, "at least 1 sample"),
    ],
)
def test_options_that_mean_nothing(fused_model, options, said):
    with pytest.raises(PassRefused, match=said):
        PruneToBudget(**options).requires(fused_model("llama"))
