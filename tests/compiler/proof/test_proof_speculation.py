"""Speculation measured on tiny artifacts, in the process and by the runtime that a compile uses."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest
from matplotlib.figure import Figure

from onnxforge.compiler.draft_model import DRAFT_FOLDER
from onnxforge.compiler.draft_section import draft_model_section, layer_skip_section
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.proof_speculation import as_default, measured, speculation
from onnxforge.compiler.sample_prompts import SAMPLE_PROMPTS
from onnxforge.compiler.speculation_section import draw_speculation, speculation_section
from onnxforge.compiler.speculation_types import SampleRun
from onnxforge.compiler.speed import MeasurementFailed
from onnxforge.compiler.step_costs import MOST_ROWS
from onnxforge.passes.notes import Note, NoteKind
from onnxforge.passes.skip_layers import SkipLayers
from onnxforge.runtimes import Speculation, load
from onnxforge.runtimes.artifact import read_manifest, write_manifest

sys.path.insert(0, str(Path(__file__).parents[2] / "runtimes"))

from tiny_artifacts import PLAIN, SHARED, seal, write_decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A decoder whose context holds the sample prompts, byte by byte."""
    return write_decoder(tmp_path_factory.mktemp("speculative"), dataclasses.replace(SHARED, context=1024))


@pytest.fixture(scope="module")
def report(folder):
    return measured(folder, None)


def test_everything_is_measured_and_a_decision_made(report):
    assert [len(cost.seconds) for cost in report.costs] == [MOST_ROWS, MOST_ROWS]
    assert all(min(cost.seconds) > 0 for cost in report.costs)
    assert report.rows.is_exact
    assert report.rows.positions > 100
    assert [f.draft_tokens for f in report.forecasts] == list(range(1, MOST_ROWS))
    assert [sample.name for sample in report.samples] == [prompt.name for prompt in SAMPLE_PROMPTS]
    assert all(sample.accepted <= sample.drafted for sample in report.samples)
    assert all(sample.steps < sample.tokens for sample in report.samples)
    assert report.draft_tokens in range(1, MOST_ROWS)
    assert report.forecast is not None
    assert not report.asked
    assert "measured" in report.reason


def test_the_forecast_knows_how_many_steps_the_runtime_took(folder, report):
    """Replay and runtime take the same steps where the clock decides nothing: one drafted token at most."""
    fixed = measured(folder, 1)
    for grounded in (True, False):
        runs = [sample for sample in fixed.samples if sample.grounded is grounded]
        per_step = sum(run.tokens - 1 for run in runs) / sum(run.steps for run in runs)
        side = fixed.forecast.grounded if grounded else fixed.forecast.open
        assert per_step == pytest.approx(side.tokens_per_step)
    assert fixed.asked
    assert fixed.enabled
    assert "--speculation 1" in fixed.reason


def test_the_report_shows_it(report):
    page = speculation_section(report)
    assert "bit for bit the same" in page
    assert f"**{report.draft_tokens}**" in page
    assert "**all open**" in page
    assert draw_speculation(report, Figure())
    assert speculation_section(None) == ""
    assert not draw_speculation(None, Figure())


def test_an_artifact_with_the_decision_loads_and_goes_by_it(folder, report):
    before = read_manifest(folder)
    chosen = as_default(dataclasses.replace(report, enabled=True))
    write_manifest(folder, dataclasses.replace(before, speculation=chosen))
    try:
        with load(folder, threads=1) as model:
            answer = model.generate("the and the and the and", max_new_tokens=8, do_sample=False)
        assert answer.stats.speculative is not None
    finally:
        write_manifest(folder, before)


def test_a_short_context_leaves_nothing_to_measure(tmp_path):
    found = measured(write_decoder(tmp_path / "short", dataclasses.replace(SHARED, context=64)), None)
    assert found.rows.is_exact
    assert (found.forecasts, found.samples, found.draft_tokens, found.enabled) == ((), (), 0, False)
    assert "gave nothing to measure" in found.reason
    assert "Forecast" not in speculation_section(found)
    assert as_default(found) is not None


def test_what_cannot_or_shall_not_draft_is_left_alone(folder, tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Found:
        speculation: object = None

    other = write_decoder(tmp_path / "plain", PLAIN)
    assert speculation(Found(), other, None) == Found()
    assert speculation(Found(), folder, 0) == Found()


def test_a_process_that_dies_says_what_to_do(folder, tmp_path):
    with pytest.raises(MeasurementFailed, match="--speculation off"):
        measured(tmp_path / "nothing here", None)


def test_layer_skip_is_measured_on_the_same_prompts(tmp_path):
    folder = write_decoder(tmp_path / "skipping", dataclasses.replace(SHARED, context=1024))
    model = ir.load(folder / "onnx" / "model.onnx")
    ir.save(SkipLayers(branches="0")(model).model, folder / SkipLayers.file)
    brought = Speculation(False, 0, min_rows=1, draft_graph=SkipLayers.file)
    seal(folder, speculation=brought, context_length=1024)
    found = measured(folder, None)
    (skipping,) = found.drafts
    assert skipping.drafter == "layer-skip"
    assert skipping.is_equal
    assert [run.name for run in skipping.samples] == [run.name for run in found.samples]
    assert sum(run.drafted for run in skipping.samples) > 0
    assert "layer skip is" in found.reason
    default = as_default(found, brought)
    assert default is not None
    assert default.draft_graph == SkipLayers.file
    assert (default.drafter == "layer-skip") is skipping.chosen
    page = layer_skip_section(
        [note("0: reads 0.9", 0.5, "chosen"), note("1: reads 0.8", 0.9, "tried")], found
    )
    assert page.index("`0`") < page.index("`1`")
    assert "2 sets were tried" in page
    assert layer_skip_section([], None) == ""


def test_a_draft_model_is_measured_on_the_same_prompts(tmp_path):
    form = dataclasses.replace(SHARED, context=1024)
    folder = write_decoder(tmp_path / "whole", form)
    seal(write_decoder(folder / DRAFT_FOLDER, form), context_length=1024)
    brought = Speculation(False, 0, min_rows=1, draft_model=DRAFT_FOLDER)
    seal(folder, speculation=brought, context_length=1024)
    found = measured(folder, None)
    (drafted,) = found.drafts
    assert drafted.drafter == "draft-model"
    assert [run.name for run in drafted.samples] == [run.name for run in found.samples]
    assert accepted(drafted.samples) > accepted(found.samples), "it is the same model; n-grams guess too"
    assert "the draft model is" in found.reason
    default = as_default(found, brought)
    assert default is not None
    assert default.draft_model == DRAFT_FOLDER
    assert (default.drafter == "draft-model") is drafted.chosen
    page = draft_model_section(Ledger(draft=Ledger()), found)
    assert page.startswith("## Draft model")
    assert page.count("\n| ") > len(drafted.samples)
    assert draft_model_section(Ledger(), None) == ""


def accepted(samples: Sequence[SampleRun]) -> float:
    """Of the tokens that were drafted, those that were right."""
    return sum(run.accepted for run in samples) / sum(run.drafted for run in samples)


def note(where: str, value: float, reason: str) -> Note:
    return Note(NoteKind.MEASURED, "layer skip", where, reason, value)
