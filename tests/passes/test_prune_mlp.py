"""`prune-mlp`: every family without some of its channels answers as if their rows were zero."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import fill
from pruning_runs import answer, groups, silenced, weight_elements, with_moments

from onnxforge.models.families import FAMILIES
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.input_moments import moments_of
from onnxforge.passes.prune_groups import Unit
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.unit_damage import UnitDamage, leave_damage
from onnxforge.passes.unit_scores import removal, score_names
from onnxforge.passes.unpruned import unpruned

CHOSEN = ("surgeon", "wanda", "magnitude", "random")


def pruned(model: ir.Model, **options: object) -> ir.Model:
    step = PruneMlp(**options)
    step.requires(model)
    assert step(model).modified
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_as_with_rows_at_zero(fused, family):
    model = with_moments(fused(family))
    before = weight_elements(model)
    found = groups(model, Unit.CHANNEL)
    gone = {g.name: set(removal(g, "wanda", g.units - round(g.units * 0.7 / 4) * 4).order) for g in found}
    lost = sum(group.parameters() * len(gone[group.name]) for group in found)
    wanted = answer(silenced(fused(family), Unit.CHANNEL, gone))
    smaller = pruned(model, share=0.3, score="wanda", refit=False, multiple=4)
    assert np.abs(answer(smaller) - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert weight_elements(smaller) == before - lost
    assert 0.2 < lost / sum(group.parameters() * group.units for group in found) < 0.4


@pytest.mark.parametrize("score", CHOSEN)
def test_scores_choose_differently_and_leave_a_graph_that_runs(fused, score):
    model = pruned(with_moments(fused("llama")), score=score, share=0.5)
    assert np.isfinite(answer(model)).all()
    assert {group.units for group in groups(model, Unit.CHANNEL)} == {40}


def test_the_surgeon_costs_least_and_the_refit_pays(fused):
    """Squared error of each layer's output over what the moments were summed over."""

    def error(score: str, refit: bool) -> float:
        model = with_moments(fused("llama"))
        before = {
            g.readers()[0].name: (moments_of(g.value).matrix(), g.readers()[0].inputs[1].const_value.numpy())
            for g in groups(model, Unit.CHANNEL)
        }
        kept = {}
        for g in groups(model, Unit.CHANNEL):
            gone = removal(g, score, 24).order
            kept[g.readers()[0].name] = [unit for unit in range(g.units) if unit not in gone]
        pruned(model, score=score, refit=refit, share=0.3)
        total = 0.0
        for node in model.graph:
            if node.name in before:
                moments, matrix = before[node.name]
                wrong = matrix.copy()
                wrong[kept[node.name]] -= node.inputs[1].const_value.numpy()
                total += float(np.einsum("kn,kn->", wrong, moments @ wrong))
        return total

    found = {score: (error(score, False), error(score, True)) for score in ("surgeon", "wanda", "random")}
    for plain, fitted in found.values():
        assert fitted < 0.9 * plain
    assert found["surgeon"][1] < found["wanda"][1] < found["random"][1]


def test_layers_lose_what_they_can_spare(fused):
    model = with_moments(fused("llama"))
    first = groups(model, Unit.CHANNEL)[0]
    quiet = moments_of(first.value).products
    quiet[:] = np.eye(len(quiet)) * quiet.max()
    quiet[:40, :40] *= 1e-6
    pruned(model, share=0.25, uniform=False, multiple=4)
    left = [group.units for group in groups(model, Unit.CHANNEL)]
    assert left[0] == 40 == min(left)
    assert sum(left) == pytest.approx(5 * 60, abs=4)


def test_a_pruned_model_remembers_the_whole_one_and_forgets_what_was_measured(fused):
    model = pruned(with_moments(fused("llama")))
    assert unpruned(model) is not None
    assert [g.units for g in groups(unpruned(model), Unit.CHANNEL)] == [80] * 5
    assert all(moments_of(value) is None for node in model.graph for value in node.outputs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.0}, "share is 1.0"),
        ({"score": "best"}, "score is 'best'; use one of surgeon"),
        ({"multiple": 0}, "multiple is 0"),
        ({"skip": "("}, "no regular expression"),
    ],
)
def test_options_that_mean_nothing_are_refused(fused, options, said):
    with pytest.raises(PassRefused, match=said.replace("(", r"\(")):
        PruneMlp(**options).requires(fused("llama"))


@pytest.mark.parametrize("score", ["surgeon", "wanda", "first-order"])
def test_a_score_without_its_measure_is_refused_and_nothing_changes(fused, score):
    model = fused("llama")
    before = weight_elements(model)
    with pytest.raises(PassRefused, match=r"put `(correlate-inputs|measure-gradients)` before"):
        PruneMlp(score=score, refit=False)(model)
    assert weight_elements(model) == before
    assert unpruned(model) is None


NORMED = """<ir_version: 10, opset_import: ["" : 23]>
g (float[batch_size, s, 8] x) => (float[batch_size, s, 8] y) {
    h = MatMul (x, up)
    [inner_norm] n = RMSNormalization <axis = -1> (h, scale)
    y = MatMul (n, down)
}"""


def test_a_graph_that_is_not_understood_is_refused_with_the_node():
    model = ir.from_onnx_text(NORMED)
    shapes = {"up": (8, 16), "scale": (16,), "down": (16, 8)}
    fill(model.graph, {name: np.ones(shape, np.float32) for name, shape in shapes.items()})
    with pytest.raises(
        PassRefused, match=r"RMSNormalization 'inner_norm' stopped .* normalizes over this axis"
    ):
        PruneMlp(score="magnitude", refit=False)(model)


def test_every_layer_cannot_be_spared(fused):
    with pytest.raises(PassRefused, match="skip finds every FFN"):
        PruneMlp(skip="mlp")(with_moments(fused("llama")))


def test_a_layer_can_be_spared(fused):
    model = with_moments(fused("llama"))
    name = groups(model, Unit.CHANNEL)[2].name
    pruned(model, skip=name.replace(".", r"\."), share=0.5)
    assert [group.units for group in groups(model, Unit.CHANNEL)] == [40, 40, 80, 40, 40]


@pytest.mark.parametrize("uniform", [True, False])
def test_a_share_of_less_than_what_goes_at_a_time_is_refused(fused, uniform):
    model = with_moments(fused("llama"))
    for group in groups(model, Unit.CHANNEL):
        leave_damage(group.value, UnitDamage(4, 0.1))
    with pytest.raises(PassRefused, match=r"0\.01 of 80 channels is less than what goes at a time \(4\)"):
        PruneMlp(share=0.01, uniform=uniform)(model)
    assert unpruned(model) is None


def test_what_is_left_is_a_multiple_where_layers_differ_too(fused):
    model = with_moments(fused("llama"))
    for index, group in enumerate(groups(model, Unit.CHANNEL)):
        leave_damage(group.value, UnitDamage(24, 1e-6 if index == 3 else 1.0))
    pruned(model, share=0.3, uniform=False)
    left = [group.units for group in groups(model, Unit.CHANNEL)]
    assert len(set(left)) > 1
    assert not any(units % 4 for units in left)


def test_what_was_cut_is_noted(fused):
    model = with_moments(fused("bert"))
    with notes.listen() as seen:
        pruned(model, share=0.5)
    assert [note.where.rpartition(": ")[2] for note in seen if note.kind == "match"] == ["80 -> 40"] * 4
    assert "first-order" in score_names()
