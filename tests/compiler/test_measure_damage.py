"""`measure-damage`: what one layer's units are worth to the model, and what passes make of it."""

import onnx_ir as ir
import pytest

from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.measure_damage import MeasureDamage
from onnxforge.compiler.pipeline import parse
from onnxforge.compiler.prune_option import ahead_of_pruning
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.prune_groups import Unit, prune_groups
from onnxforge.passes.prune_heads import PruneHeads
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.unit_damage import UnitDamage, damage_of, leave_damage


@pytest.fixture
def measured(tiny_source, tiny_export):
    """``measured(family)``: fused, with data attached and moments left."""

    def make(family: str) -> ir.Model:
        model = tiny_export(family)
        attach(model, tiny_source(family))
        for step in parse((*ahead_of_pruning(TARGETS[0]), "correlate-inputs{samples=4,tokens=32}")):
            step(model)
        return model

    return make


@pytest.mark.parametrize(
    ("family", "kind", "unit", "taken"),
    [
        ("llama", "mlp", Unit.CHANNEL, 40),
        ("llama", "heads", Unit.QUERY_HEAD, 2),
        ("gpt2", "heads", Unit.KV_GROUP, 2),
        ("bert", "mlp", Unit.CHANNEL, 40),
    ],
)
def test_every_layer_is_measured_alone(measured, family, kind, unit, taken):
    model = measured(family)
    before = [(node.op_type, node.name) for node in model.graph]
    with notes.listen() as seen:
        assert not MeasureDamage(unit=kind, share=0.5, samples=1, tokens=16)(model).modified
    groups = prune_groups(model.graph).of(unit)
    found = [damage_of(group.value) for group in groups]
    assert [item.units for item in found] == [taken] * len(groups)
    assert all(item.damage > 0 for item in found)
    assert len({item.damage for item in found}) == len(groups)
    assert [note.value for note in seen if note.kind == "measured"] == [item.damage for item in found]
    assert [(node.op_type, node.name) for node in model.graph] == before


def test_the_share_goes_where_the_model_minds_least(measured):
    model = measured("llama")
    for index, group in enumerate(prune_groups(model.graph).of(Unit.CHANNEL)):
        leave_damage(group.value, UnitDamage(16, 1e-6 if index == 3 else 1.0))
    assert PruneMlp(share=0.2, uniform=False, multiple=4)(model).modified
    left = [group.units for group in prune_groups(model.graph).of(Unit.CHANNEL)]
    assert left[3] == 48 == min(left)
    assert sum(left) == pytest.approx(5 * 64, abs=8)


def test_heads_go_where_the_model_minds_least(measured):
    model = measured("llama")
    for index, group in enumerate(prune_groups(model.graph).of(Unit.QUERY_HEAD)):
        leave_damage(group.value, UnitDamage(2, 1e-6 if index == 2 else 1.0))
    assert PruneHeads(share=0.1)(model).modified
    assert [group.heads[0] for group in prune_groups(model.graph).of(Unit.KV_GROUP)] == [4, 4, 2, 4, 4]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unit": "layers"}, "unit is 'layers'; use one of mlp"),
        ({"share": 0.0}, "share is 0.0"),
        ({"score": "best"}, "score is 'best'"),
        ({"samples": 0}, "at least 1 sample"),
    ],
)
def test_options_that_mean_nothing(measured, options, said):
    with pytest.raises(PassRefused, match=said):
        MeasureDamage(**options).requires(measured("llama"))


def test_without_moments_it_says_what_to_do(tiny_export):
    model = tiny_export("llama")
    for step in parse(ahead_of_pruning(TARGETS[0])):
        step(model)
    with pytest.raises(PassRefused, match="put `correlate-inputs` before"):
        MeasureDamage()(model)


def test_layers_that_no_switch_fits_are_compared_without(measured):
    model = measured("opt")  # its FFNs multiply [batch * tokens, channels]
    with notes.listen() as seen:
        assert not MeasureDamage(share=0.5, samples=1, tokens=16)(model).modified
    assert ["no switch fits it" in note.reason for note in seen] == [True]
    groups = prune_groups(model.graph).of(Unit.CHANNEL)
    assert groups
    assert not any(damage_of(group.value) for group in groups)
    assert PruneMlp(share=0.2, uniform=False, multiple=4)(model).modified
