"""Plain lines: one for each stage that ended, and of a long one now and then how far it is."""

import io

import pytest

from onnxforge.compiler import progress, step_progress
from onnxforge.compiler.build import _run
from onnxforge.compiler.observe import GraphStats, PassRecord
from onnxforge.compiler.progress import Lines, describe
from onnxforge.compiler.targets import Target
from onnxforge.passes.notes import Note, NoteKind


def test_a_long_stage_says_how_far_it_is_now_and_then(monkeypatch):
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    stream = io.StringIO()
    lines = Lines(stream)
    lines.begin("distill-blocks")
    for now in range(0, 100, 5):
        lines.during(f"at {now}")
    lines.end("done")
    said = [line.split("  ")[-1] for line in stream.getvalue().splitlines()]
    assert said == ["at 30", "at 60", "at 90", "done"]


@pytest.mark.parametrize(
    ("outcomes", "said"),
    [
        (["0.9x of the bytes"], "0.9x of the bytes"),
        (["static", "kept back", "static"], "1 kept back, 2 static"),
        (["a", "b", "c", "d", "a"], "5 measures"),
    ],
)
def test_outcomes_of_many_kinds_are_only_counted(outcomes, said):
    same = GraphStats(nodes=1, weight_bytes=1, ops={})
    measures = tuple(Note(NoteKind.MEASURED, "x", "y", outcome) for outcome in outcomes)
    assert describe(PassRecord("step", 0.0, False, same, same, (), (), measures)) == said


def test_steps_are_heard_while_a_build_runs_them(monkeypatch, tiny_export):
    from onnxforge.compiler import build

    heard = []

    def run(model, passes, *, on_done):
        step_progress.say("layer 1 of 2")

    monkeypatch.setattr(build, "run_passes", run)
    watch = Lines(io.StringIO())
    monkeypatch.setattr(watch, "during", heard.append)
    _run(tiny_export("bert"), Target(name="none", summary="", passes=()), 0, watch)
    step_progress.say("nobody listens now")
    assert heard == ["layer 1 of 2"]
