"""`prune-layers`: every family without some of its layers says what torch says without them; what cannot go
is named."""

import copy

import numpy as np
import onnx_ir as ir
import pytest
import torch
from legacy_exports import legacy_decoder, legacy_encoder
from loop_runs import FUSED
from pruning_runs import TOKENS, answer, with_moments

from onnxforge.compiler import pipeline
from onnxforge.models.families import FAMILIES
from onnxforge.passes.base import PassRefused
from onnxforge.passes.input_moments import moments_of
from onnxforge.passes.layer_ranks import leave_ranks
from onnxforge.passes.layers import LayerUnit, find_layers, spans_of
from onnxforge.passes.prune_layers import PruneLayers
from onnxforge.passes.removed_layers import removed, without
from onnxforge.passes.unpruned import unpruned

DECODERS = [name for name, family in FAMILIES.items() if family.is_decoder]
ENCODERS = [name for name, family in FAMILIES.items() if not family.is_decoder]
TWICE = ("bert", "cohere", "gemma2", "llama", "modernbert", "opt", "phi")
"""One of each form, also without its last layer."""


def choices(families: list[str]) -> list[tuple[str, list[int]]]:
    return [(name, [0, 2]) for name in families] + [(name, [1, -1]) for name in families if name in TWICE]


def pruned(model: ir.Model, layers: str = "", **options: object) -> ir.Model:
    step = PruneLayers(layers=layers, **options)
    step.requires(model)
    assert step(model).modified
    return model


def torch_layers(model: torch.nn.Module, family: str) -> torch.nn.ModuleList:
    return model.base_model.get_submodule(FAMILIES[family].layers)


def torch_without(model: torch.nn.Module, family: str, gone: list[int]) -> torch.nn.Module:
    """The same model of fewer layers."""
    model = copy.deepcopy(model)
    path, layers = FAMILIES[family].layers, torch_layers(model, family)
    kept = [place for place in range(len(layers)) if place not in gone]
    owner, _, name = path.rpartition(".")
    setattr(model.base_model.get_submodule(owner), name, torch.nn.ModuleList([layers[i] for i in kept]))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[place] for place in kept]
    model.config.num_hidden_layers = len(kept)
    return model


def torch_answer(model: torch.nn.Module) -> np.ndarray:
    ids = torch.tensor([TOKENS])
    cache = {"use_cache": False} if hasattr(model, "generate") else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **cache)[0][0].numpy()


def assert_close(found: np.ndarray, wanted: np.ndarray) -> None:
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()


def cache_names(model: ir.Model) -> list[str]:
    names = [value.name for value in (*model.graph.inputs, *model.graph.outputs)]
    return [name for name in names if name.startswith(("past_key_values.", "present."))]


def numbered(layers: int) -> list[str]:
    sides = ("past_key_values", "present")
    return [f"{side}.{n}.{kind}" for side in sides for n in range(layers) for kind in ("key", "value")]


@pytest.mark.parametrize(("family", "gone"), choices(DECODERS), ids=str)
def test_a_decoder_without_layers(fused, tiny_torch, family, gone):
    model, source = fused(family), tiny_torch(family)
    count = len(torch_layers(source, family))
    assert len(find_layers(model.graph)) == count
    weights = set(model.graph.initializers)
    gone = [number % count for number in gone]
    pruned(model, "+".join(map(str, gone)))
    assert_close(answer(model), torch_answer(torch_without(source, family, gone)))
    assert cache_names(model) == numbered(count - len(gone))
    lost = weights - set(model.graph.initializers)
    name = FAMILIES[family].layers.rsplit(".")[-1]
    for number in range(count):
        of_layer = {weight for weight in weights if f"{name}.{number}." in weight}
        assert of_layer
        assert of_layer <= lost if number in gone else not of_layer & lost


@pytest.mark.parametrize(("family", "gone"), choices(ENCODERS), ids=str)
def test_an_encoder_without_layers(fused, tiny_torch, family, gone):
    model, source = fused(family), tiny_torch(family)
    count = len(torch_layers(source, family))
    gone = [number % count for number in gone]
    pruned(model, "+".join(map(str, gone)))
    assert [value.name for value in model.graph.outputs] == ["last_hidden_state"]
    assert len(find_layers(model.graph)) == count - len(gone)
    assert_close(answer(model), torch_answer(torch_without(source, family, gone)))


def test_attentions_alone_and_mlps_alone(fused, tiny_torch):
    model, source = fused("gemma2"), copy.deepcopy(tiny_torch("gemma2"))
    pruned(model, "1+4", unit="attention")
    pruned(model, "0", unit="mlp")
    with torch.no_grad():
        for number in (1, 4):
            source.model.layers[number].post_attention_layernorm.weight.fill_(-1)  # gemma's norms add one
        source.model.layers[0].post_feedforward_layernorm.weight.fill_(-1)
    assert_close(answer(model), torch_answer(source))
    assert cache_names(model) == numbered(3)
    assert without(model, LayerUnit.ATTENTION) == (1, 4)
    assert removed(model, LayerUnit.MLP) == (0,)
    refused(model, "remove layers first")
    pruned(model, "0+2", unit="mlp")
    assert removed(model, LayerUnit.MLP) == (0, 1, 3)


def test_post_norm_parts_go_with_their_norm(fused, tiny_torch):
    model, source = fused("bert"), copy.deepcopy(tiny_torch("bert"))
    pruned(model, "3", unit="mlp")
    pruned(model, "0", unit="attention")
    layers = source.encoder.layer
    layers[0].attention.forward = lambda hidden, *_, **__: (hidden, None)
    layers[3].feed_forward_chunk = lambda hidden: hidden
    assert_close(answer(model), torch_answer(source))


def test_numbers_are_those_of_the_source(fused, tiny_torch):
    model = fused("llama")
    before = model.clone()
    pruned(model, "1")
    pruned(model, "0+2")
    assert removed(model, LayerUnit.LAYER) == (0, 1, 3)
    assert_close(answer(model), torch_answer(torch_without(tiny_torch("llama"), "llama", [0, 1, 3])))
    kept = unpruned(model)
    assert kept is not None
    assert ir.to_proto(kept).SerializeToString() == ir.to_proto(before).SerializeToString()
    names = {node.name for node in before.graph}
    assert {node.name for node in model.graph} < names


def test_an_mlp_ahead_of_all_attentions_is_not_counted(fused):
    model = pruned(fused("llama"), "0", unit="attention")
    weights = set(model.graph.initializers)
    pruned(model, "0", unit="mlp")
    lost = weights - set(model.graph.initializers)
    assert {name.split(".")[2] for name in lost} == {"1"}
    assert removed(model, LayerUnit.MLP) == (1,)


@pytest.mark.parametrize("count", [2, 0.4, 0.45])
def test_the_ranked_go(fused, count):
    model, told = fused("llama"), fused("llama")
    leave_ranks(spans_of(find_layers(model.graph), LayerUnit.LAYER), LayerUnit.LAYER, (3, 1, 0))
    pruned(model, count=count)
    pruned(told, "1+3")
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(told).SerializeToString()


def test_a_length_that_is_read_off_the_first_cache_is_read_off_another(fused, tiny_torch):
    """As older exporters write it: positions and masks hang on the shape of past_key_values.0.key."""
    model = fused("llama")
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.0.key")
    total = next(value for n in model.graph for value in n.outputs if value.name == "attention/total_int64")
    ids = model.graph.inputs[0]
    lengths = [ir.node("Shape", [item], {"start": a, "end": a + 1}) for item, a in ((past, 2), (ids, 1))]
    summed = ir.node("Add", [node.outputs[0] for node in lengths])
    scalar = ir.node("Squeeze", summed.outputs)
    for number, node in enumerate((*lengths, summed, scalar)):
        node.name = node.outputs[0].name = f"own/{number}"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
    model.graph.insert_before(model.graph[0], (*lengths, summed, scalar))
    total.replace_all_uses_with(scalar.outputs[0])
    pruned(model, "0+1")
    assert lengths[0].inputs[0].name == "past_key_values.0.key"
    assert_close(answer(model), torch_answer(torch_without(tiny_torch("llama"), "llama", [0, 1])))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_an_older_export(tiny_torch, family):
    """Without its PyTorch source: a graph as the TorchScript exporter wrote it."""
    task = "feature-extraction" if family == "bert" else None
    source = tiny_torch(family, task)
    model = (legacy_encoder if family == "bert" else legacy_decoder)(source)
    for step in pipeline.parse(FUSED):
        step(model)
    pruned(model, "0+2")
    assert_close(answer(model), torch_answer(torch_without(source, family, [0, 2])))
    assert cache_names(model) == ([] if family == "bert" else numbered(3))


def test_what_was_measured_with_the_layers_in_place_is_forgotten(fused):
    model = with_moments(fused("llama"))
    found = lambda: [v for node in model.graph for v in node.outputs if moments_of(v)]  # noqa: E731
    assert found()
    pruned(model, "1")
    assert not found()


def refused(model: ir.Model, message: str, **options: object) -> None:
    before = ir.to_proto(model).SerializeToString()
    with pytest.raises(PassRefused, match=message):
        PruneLayers(**({"layers": "1"} | options)).requires(model)
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ""}, "say how many layers"),
        ({"count": 2}, "say how many layers"),
        ({"layers": "", "count": -1}, "say how many layers"),
        ({"layers": "", "count": 1.5}, "say how many layers"),
        ({"layers": "5"}, "numbers from 0 to 4"),
        ({"layers": "1+x"}, "numbers from 0 to 4"),
        ({"layers": "0+1+2+3+4"}, "at most 4"),
        ({"layers": "", "count": 5}, "1 to 4 can go, not 5"),
        ({"layers": "", "count": 0.05}, "1 to 4 can go, not 0"),
        ({"layers": "", "count": 2}, "none is ranked. Put rank-layers{count=2,unit=layer} before"),
        ({"unit": "head"}, "unit is one of layer, attention, mlp"),
    ],
    ids=str,
)
def test_options_that_name_no_layers(fused, options, message):
    refused(fused("llama"), message, **options)


def test_what_is_not_understood_is_named(fused, tiny_export):
    refused(fused("phi"), "layer 0, which ends in .*layers.0.* is not an attention and an MLP", unit="mlp")
    refused(fused("gpt2", "fuse-skip-norm"), "SkipLayerNormalization.; prune before fuse-skip-norm")
    plain = tiny_export("bert")
    for step in pipeline.parse(("canonicalize", "decompose-attention")):
        step(plain)
    refused(plain, "no attention was found .*Softmax.* may be part of one")


@pytest.mark.parametrize("unit", ["attention", "mlp"])
def test_parts_between_which_the_stream_is_reshaped(fused, unit):
    """OPT's MLPs read [batch * tokens, hidden]: whole layers can go, and neither part alone."""
    refused(fused("opt"), f"the {unit} that ends in .* without it the stream would not fit", unit=unit)


def test_shared_keys_and_values(fused):
    """As in Gemma 3n: the third layer attends to what the second wrote."""
    model = fused("olmo2")
    second, third = [node for node in model.graph if node.op_type == "GroupQueryAttention"][1:3]
    third.replace_input_with(1, second.inputs[1])
    third.replace_input_with(2, second.inputs[2])
    refused(model, f"{second.name} and {third.name} belong to no two layers.*share keys and values")


def test_a_cache_that_is_read_elsewhere(fused):
    model = fused("llama")
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.1.key")
    reader = ir.node("ReduceMax", [past], {"keepdims": 0}, name="reader")
    head = model.graph.outputs[0].producer()
    added = ir.node("Add", [head.inputs[0], reader.outputs[0]])
    model.graph.insert_before(head, (reader, added))
    head.replace_input_with(0, added.outputs[0])
    refused(model, "reader stays and reads past_key_values.1.key")
    PruneLayers(layers="0").requires(model)


def test_a_state_that_is_returned(fused):
    model = fused("llama")
    norm = next(node for node in model.graph if "layers.1" in node.name and "Norm" in node.op_type)
    model.graph.outputs.append(norm.outputs[0])
    refused(model, "the model returns .*layers.1.*, which only what is to be removed computes")
    PruneLayers(layers="0").requires(model)


def test_a_stream_that_changes_its_width(fused):
    model = fused("llama")
    find_layers(model.graph)[1].whole.end.shape = ir.Shape(["batch_size", "sequence_length", 32])
    refused(model, r"ends in /model/layers.1/Add_1 makes FLOAT \[.*32\]")
