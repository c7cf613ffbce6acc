"""The order in which layers can go is measured: what does nothing goes first, and equal models rank alike."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.layer_damage import greedy_order
from onnxforge.compiler.layer_rank_section import layer_rank_section
from onnxforge.compiler.layer_switches import layer_session
from onnxforge.compiler.rank_layers import RankLayers
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.layer_ranks import LAYER_RANK, ranked
from onnxforge.passes.layers import LayerUnit, find_layers, spans_of
from onnxforge.passes.prune_layers import PruneLayers

FUSE = TARGETS[0].passes[: TARGETS[0].passes.index("cleanup")]
BLUNT = {
    "llama": ("model.layers.{}.mlp.down_proj", "model.layers.{}.self_attn.o_proj"),
    "bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
}
QUICK = {"samples": 1, "tokens": 16}


@pytest.fixture
def fused(tiny_export, tiny_source):
    """A tiny fused model of which some layers do (next to) nothing, ready for calibration."""

    def make(family: str, blunt: tuple[int, ...] = ()) -> ir.Model:
        model = tiny_export(family)
        for layer in blunt:
            for part in BLUNT[family]:
                weight = model.graph.initializers[f"{part.format(layer)}.weight"]
                weight.const_value = ir.tensor(weight.const_value.numpy() / 1e4, name=weight.name)
        for step in pipeline.parse(FUSE):
            step(model)
        attach(model, tiny_source(family))
        return model

    return make


def order(model: ir.Model, **options: object) -> list[notes.Note]:
    step = RankLayers(**(QUICK | options))
    step.requires(model)
    before = ir.to_proto(model).SerializeToString()
    with notes.listen() as seen:
        assert not step(model).modified
    assert ir.to_proto(model).SerializeToString() == before
    return [note for note in seen if note.what == LAYER_RANK]


@pytest.mark.parametrize("by", ["damage", "influence", "magnitude"])
@pytest.mark.parametrize("unit", ["layer", "attention", "mlp"])
def test_what_does_nothing_goes_first(fused, by, unit):
    model = fused("llama", (1, 3))
    found = order(model, by=by, unit=unit, count=2)
    assert {note.where for note in found[:2]} == {f"{unit} 1", f"{unit} 3"}
    assert found == order(model, by=by, unit=unit, count=2)
    assert [note.reason for note in found[:2]] == ["to go", "to go"]
    assert all(note.reason == "to stay" for note in found[2:])
    first = ranked(spans_of(find_layers(model.graph), LayerUnit(unit)), LayerUnit(unit))
    assert [f"{unit} {number}" for number in first] == [note.where for note in found[:2]]


@pytest.mark.parametrize("by", ["damage", "influence"])
def test_an_encoder(fused, by):
    """A post-norm layer that does nothing still norms, so it is close to nothing only."""
    found = order(fused("bert", (2,)), by=by, count=1, tokens=12)
    assert found[0].where == "layer 2"


def test_ranked_layers_are_pruned(fused):
    model, told = fused("llama", (1, 3)), fused("llama", (1, 3))
    order(model, count=0.4)
    PruneLayers(count=0.4)(model)
    PruneLayers(layers="1+3")(told)
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(told).SerializeToString()


def test_damage_is_that_of_the_pruned_model(fused):
    model = fused("llama")
    found = order(model, count=2)
    gone = "+".join(sorted(note.where.split()[1] for note in found))
    step = RankLayers(**QUICK)
    work = step.work(model)
    pruned = model.clone()
    PruneLayers(layers=gone)(pruned)
    ids = np.concatenate([batch.ids for batch in work])
    p, q = (log_softmax(logits(each, ids)) for each in (model, pruned))
    assert found[1].value == pytest.approx(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))), rel=1e-3)


def logits(model: ir.Model, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), None, ["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    for item in session.get_inputs():
        if item.name.startswith("past"):
            feeds[item.name] = np.zeros((len(ids), item.shape[1], 0, item.shape[3]), np.float32)
    return session.run(["logits"], {item.name: feeds[item.name] for item in session.get_inputs()})[0]


def log_softmax(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def test_a_switch_leaves_out_its_own_layer(fused):
    """Also the last layer of a post-norm encoder, whose end is what the graph returns."""
    model = fused("bert")
    work = RankLayers(**QUICK).work(model)
    with layer_session(model, LayerUnit.LAYER) as session:
        assert session.answer == "last_hidden_state"
        alone = session.divergence(np.eye(4, dtype=bool), work)
        none = session.divergence(np.zeros((1, 4), dtype=bool), work)
    assert none[0] == pytest.approx(0, abs=1e-6)
    assert (alone > 1e-4).all()


def test_greedy_order_is_that_of_every_try():
    """Damage that grows faster the more is gone: the lazy search finds what trying all does."""
    rng = np.random.default_rng(6)
    costs, pairs = rng.uniform(1, 9, 12), rng.uniform(0, 1, (12, 12))
    tried = []

    def damage(gone):
        tried.append(tuple(gone))
        return float(sum(costs[i] for i in gone) + sum(pairs[i, j] for i in gone for j in gone if i < j))

    found = greedy_order(12, 5, damage)
    assert len(tried) < 30
    gone = []
    for layer, total in found:
        totals = {i: damage((*gone, i)) for i in range(12) if i not in gone}
        assert (layer, total) == (min(totals, key=totals.get), min(totals.values()))
        gone.append(layer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "guess"}, "by one of damage, influence, magnitude, random"),
        ({"unit": "head"}, "unit is one of layer, attention, mlp"),
        ({"count": 5}, "of 5 layers 1 to 4 can be ranked"),
        ({"count": 0}, "of 5 layers 1 to 4"),
        ({"samples": 0}, "at least 1 sample"),
    ],
    ids=str,
)
def test_options_that_rank_nothing(fused, options, message):
    with pytest.raises(PassRefused, match=message):
        RankLayers(**options).requires(fused("llama"))


def test_the_report_says_what_goes(fused):
    said = layer_rank_section(order(fused("llama", (3,)), count=1))
    assert "## Layers" in said
    (row,) = [line for line in said.splitlines() if "to go" in line]
    assert "layer 3" in row
    assert layer_rank_section([]) == ""


def test_by_chance_is_seeded(fused):
    model = fused("llama")
    orders = [[note.where for note in order(model, by="random", seed=seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_layers_that_cannot_be_told_apart(fused):
    with pytest.raises(PassRefused, match="is not an attention and an MLP"):
        RankLayers(unit="mlp").requires(fused("phi"))
