"""`compare-unpruned` and the section of the report that it fills."""

import pytest

from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.compare_unpruned import PRUNING, CompareUnpruned
from onnxforge.compiler.observe import run_passes
from onnxforge.compiler.pipeline import parse
from onnxforge.compiler.prune_option import ahead_of_pruning
from onnxforge.compiler.pruning_section import pruning_section
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes.base import PassRefused

COMPARE = "compare-unpruned{samples=1,tokens=16}"
STEPS = (
    COMPARE,
    "correlate-inputs{samples=2,tokens=16}",
    "prune-mlp{share=0.25}",
    COMPARE,
    "prune-mlp{share=0.5,score=random,refit=false}",
    COMPARE,
    "quantize-weights{block_size=16}",
    COMPARE,
)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_every_step_has_its_price(tiny_source, tiny_export, family):
    model = tiny_export(family)
    attach(model, tiny_source(family))
    ledger = run_passes(model, parse((*ahead_of_pruning(TARGETS[0]), *STEPS)))
    found = [note for record in ledger.records for note in record.measures if note.what == PRUNING]
    assert len(found) == 3  # nothing was pruned yet at the first
    assert 0 < found[0].value < found[1].value
    sizes = [float(note.reason.partition("x")[0]) for note in found]
    assert 1 > sizes[0] > sizes[1] > sizes[2]
    section = pruning_section(ledger)
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [
        step for step in STEPS if step.startswith(("prune", "quant"))
    ]
    assert f"{found[1].value - found[0].value:+.4f}" in rows[1]


def test_without_pruning_there_is_no_section(tiny_source, tiny_export):
    model = tiny_export("llama")
    attach(model, tiny_source("llama"))
    assert pruning_section(run_passes(model, parse((*ahead_of_pruning(TARGETS[0]), COMPARE)))) == ""


def test_options_that_measure_nothing():
    with pytest.raises(PassRefused, match="at least 1 sample"):
        CompareUnpruned(samples=0).requires(None)
