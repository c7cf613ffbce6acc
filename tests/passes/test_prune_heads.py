"""`prune-heads`: every family without some of its heads answers as if their rows were zero."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import session
from pruning_runs import answer, groups, silenced, weight_elements, with_moments

from onnxforge.models.families import FAMILIES
from onnxforge.passes.base import PassRefused
from onnxforge.passes.cache_range import annotate_cache
from onnxforge.passes.constants import constant
from onnxforge.passes.prune_groups import Unit, prune_groups
from onnxforge.passes.prune_heads import PruneHeads
from onnxforge.passes.prune_layers import PruneLayers
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.quantize_cache import QuantizeCache
from onnxforge.passes.removed_units import removed_units, units_left
from onnxforge.passes.unit_scores import removal

MIXED = ("olmo2", "mpnet")
"""olmo2 norms over all heads at once; mpnet's layers share one bias with a plane for each head."""
DECODERS = [name for name, family in FAMILIES.items() if family.is_decoder and name not in MIXED]
ENCODERS = [name for name, family in FAMILIES.items() if not family.is_decoder and name not in MIXED]
GROUPED = [name for name in DECODERS if name not in ("gemma", "gpt2", "opt", "gpt_neox")]


def pruned(model: ir.Model, **options: object) -> ir.Model:
    step = PruneHeads(**options)
    step.requires(model)
    assert step(model).modified
    return model


def matches(family_model, kind: str, count: int, share: float) -> ir.Model:
    """The graph without ``count`` units of every layer, which answers as with their rows at zero."""
    unit = {"query": Unit.QUERY_HEAD, "group": Unit.KV_GROUP}[kind]
    model = with_moments(family_model())
    gone = {group.name: set(removal(group, "wanda", count).order) for group in groups(model, unit)}
    wanted = answer(silenced(family_model(), unit, gone))
    smaller = pruned(model, score="wanda", refit=False, unit=kind, share=share)
    assert np.abs(answer(smaller) - wanted).max() < 1e-5 * np.abs(wanted).max()
    return smaller


@pytest.mark.parametrize("family", GROUPED)
def test_a_decoder_without_query_heads(fused, family):
    model = matches(lambda: fused(family), "query", 2, share=0.5)
    assert {group.units for group in groups(model, Unit.KV_GROUP)} == {2}
    assert {group.heads for group in groups(model, Unit.KV_GROUP)} == {(2, 2)}


@pytest.mark.parametrize("family", [name for name in DECODERS if name != "gemma"])
def test_a_decoder_without_key_value_heads(fused, family):
    before = groups(fused(family), Unit.KV_GROUP)[0].units
    model = matches(lambda: fused(family), "group", before // 2, share=0.5)
    caches = [
        v for v in (*model.graph.inputs, *model.graph.outputs) if v.name.startswith(("past", "present"))
    ]
    assert {value.shape[1] for value in caches} == {before // 2}


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoder_without_heads(fused, family):
    model = with_moments(fused(family))
    before = weight_elements(model)
    each = groups(model, Unit.QUERY_HEAD)[0].parameters()
    smaller = pruned(model, share=0.25)
    total = sum(group.units for group in groups(fused(family), Unit.QUERY_HEAD))
    assert before - weight_elements(smaller) == pytest.approx(round(total / 4) * each, abs=64)
    assert np.isfinite(answer(smaller)).all()


def test_an_encoder_answers_as_with_rows_at_zero(fused):
    heads = groups(fused("bert"), Unit.QUERY_HEAD)
    model = with_moments(fused("bert"))
    smaller = pruned(model, share=0.25, score="magnitude", refit=False)
    left = {group.name: group.units for group in groups(smaller, Unit.QUERY_HEAD)}
    gone = {g.name: set(removal(g, "magnitude", g.units - left.get(g.name, 1)).order) for g in heads}
    wanted = answer(silenced(fused("bert"), Unit.QUERY_HEAD, gone))
    assert np.abs(answer(smaller) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_quarter_of_one_layers_heads_is_one_of_each_group(fused):
    model = pruned(with_moments(fused("llama")), share=0.1)
    assert sorted(group.heads for group in groups(model, Unit.KV_GROUP)) == [(2, 2), *[(4, 2)] * 4]


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"share": 0.2, "unit": "group"}, "has 2 key-value heads .* 0.2 of them is 0"),
        ("llama", {"share": 0.01}, "less than one"),
        ("gpt2", {"share": 0.5, "unit": "query"}, "no attention head that can be removed"),
        ("gpt2", {"share": 0.5, "unit": "query"}, "Its key-value heads can go: write unit=auto"),
        ("olmo2", {"share": 0.5}, "RMSNormalization .* normalizes over this axis"),
        ("olmo2", {"share": 0.5}, r"^(?!.*RMSNormalization .*RMSNormalization ).* \(as \d+ more\)"),
    ],
)
def test_what_cannot_be_done_is_refused(fused, family, options, said):
    model = with_moments(fused(family))
    with pytest.raises(PassRefused, match=said):
        PruneHeads(**options)(model)


@pytest.mark.parametrize("options", [{"share": 0.0}, {"unit": "layer"}, {"score": "best"}])
def test_options_that_mean_nothing_are_refused(fused, options):
    with pytest.raises(PassRefused, match=r"share is|unit is|score is"):
        PruneHeads(**options).requires(fused("llama"))


def test_heads_of_attention_written_out(tiny_export):
    """As for TensorRT: no attention operator tells where the heads are."""
    from onnxforge.compiler import pipeline

    model = tiny_export("bert")
    for step in pipeline.parse(("canonicalize", "fuse-norm")):
        step(model)
    assert {group.units for group in prune_groups(model.graph).of(Unit.QUERY_HEAD)} == {4}


def test_the_record_of_what_went_adds_up(fused):
    model = pruned(with_moments(fused("llama")), share=0.1)
    assert removed_units(model) == {"removed_heads": "2 of 20"}
    PruneMlp(share=0.5)(with_moments(model))
    PruneMlp(share=0.5)(with_moments(model))
    assert removed_units(model) == {"removed_heads": "2 of 20", "removed_channels": "300 of 400"}
    assert units_left(model, Unit.CHANNEL) == ((20,) * 5, (80,) * 5)


def test_what_removed_layers_had_lost_is_not_in_the_record(fused):
    model = pruned(with_moments(fused("llama")), share=0.1)
    PruneMlp(share=0.5)(with_moments(model))
    queries, _ = units_left(model, Unit.QUERY_HEAD)
    halved = next(layer for layer, units in enumerate(queries) if units == 2)
    PruneLayers(layers=str(halved))(model)
    assert removed_units(model) == {"removed_channels": "160 of 320"}
    PruneLayers(layers="0", unit="mlp")(model)
    assert removed_units(model) == {"removed_channels": "120 of 240"}
    PruneMlp(share=0.5)(with_moments(model))
    assert units_left(model, Unit.CHANNEL) == ((20,) * 3, (80,) * 3)


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
def test_the_scales_of_an_int8_cache_go_with_their_heads(fused, granularity):
    model = with_moments(fused("llama"))
    rng = np.random.default_rng(3)
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for present in node.outputs[1:3]:
                _, heads, _, size = present.shape
                annotate_cache(present, rng.uniform(1, 9, (heads, size)))
    step = QuantizeCache(granularity=granularity)
    step.requires(model)
    step(model)
    attention = next(node for node in model.graph if node.op_type == "GroupQueryAttention")
    before = [constant(attention.inputs[index]).numpy() for index in (12, 13)]
    pruned(model, unit="group", share=0.5, score="wanda")
    for scales, whole in zip((attention.inputs[12], attention.inputs[13]), before, strict=True):
        left = constant(scales).numpy()
        if granularity == "tensor":
            assert left.tolist() == whole.tolist()
            continue
        assert left.shape == (1, 1, 1, whole.shape[3])
        assert [head for head in range(2) if (whole[:, [head]] == left).all()]
    session(model)
