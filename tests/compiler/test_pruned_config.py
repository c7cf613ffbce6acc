"""The configuration of a pruned model builds, in torch, the model that the pruned graph is."""

import json
import re

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from onnxforge.compiler import pipeline
from onnxforge.compiler.build import build
from onnxforge.compiler.pruned_config import pruned_config, pruned_parts
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models.config_class import build_config, model_class
from onnxforge.models.families import FAMILIES
from onnxforge.passes.layers import LayerUnit
from onnxforge.passes.prune_layers import PruneLayers
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.removed_layers import remember_removed

FUSE = TARGETS[0].passes[: TARGETS[0].passes.index("cleanup")]
PLAIN = Target(name="plain", summary="no pass at all", passes=())
IDS = np.random.default_rng(4).integers(3, 97, (1, 15))
PATTERNS = {
    "qwen2": {},
    "gemma2": {"layer_types": None},  # every other one, as its class does without the list
    "gemma3_text": {"layer_types": None, "sliding_window_pattern": 3},
    "smollm3": {"no_rope_layers": None, "no_rope_layer_interval": 2},
    "gpt2": {},
    "modernbert": {},
    "distilbert": {},
}


@pytest.fixture
def fused(tiny_export):
    def make(family: str, **overrides: object) -> ir.Model:
        model = tiny_export(family, **overrides)
        for step in pipeline.parse(FUSE):
            step(model)
        return model

    return make


@pytest.mark.parametrize("family", PATTERNS)
def test_the_configuration_is_that_of_the_graph(fused, tiny_source, family):
    overrides = PATTERNS[family]
    model, source = fused(family, **overrides), tiny_source(family, **overrides)
    assert pruned_config(source.config, model) == source.config
    PruneLayers(layers="1+2")(model)
    config = pruned_config(source.config, model)
    assert pruned_parts(model) == {"removed_layers": "1+2"}
    kind = FAMILIES[family]
    built = build_config(config, kind, family)
    built._attn_implementation = "eager"
    reference = model_class(kind, next(iter(kind.classes)), family)(built).eval()
    reference.load_state_dict(renumbered(source.weights, kind.layers, {1, 2}))
    with torch.no_grad():
        wanted = reference(torch.tensor(IDS), attention_mask=torch.ones(1, 15, dtype=torch.int64))[0].numpy()
    assert np.abs(answer(model) - wanted).max() < 1e-5 * np.abs(wanted).max()


def renumbered(weights, path: str, gone: set[int]) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in weights.items():
        match = re.search(rf"(?:^|\.){re.escape(path)}\.(\d+)\.", name)
        if match and int(match[1]) in gone:
            continue
        if match:
            number = int(match[1]) - sum(n < int(match[1]) for n in gone)
            name = f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"
        found[name] = torch.tensor(tensor.numpy())
    return found


def answer(model: ir.Model) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), None, ["CPUExecutionProvider"])
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS), "position_ids": np.arange(15)[None]}
    feeds |= {
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past")
    }
    return session.run(None, {item.name: feeds[item.name] for item in session.get_inputs()})[0]


def test_nothing_removed_nothing_changed(fused, tiny_source):
    for family in ("llama", "phi", "bert"):
        assert pruned_config(tiny_source(family).config, fused(family)) == tiny_source(family).config


def test_heads_that_the_graph_lost(fused, tiny_source):
    """One of two groups of two: what is left is read off the attentions, where all are alike."""
    model, config = fused("llama"), tiny_source("llama").config
    attentions = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for node in attentions[:-1]:
        node.attributes["num_heads"] = ir.AttrInt64("num_heads", 2)
        node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", 1)
    assert pruned_config(config, model) == config
    attentions[-1].attributes.update(attentions[0].attributes)
    heads = {"num_attention_heads": 2, "head_dim": 16, "num_key_value_heads": 1}
    assert pruned_config(config, model) == config | heads


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (
            {"num_layers": 4, "attention_types": [[["global", "local"], 2]]},
            {"num_layers": 2, "attention_types": [[["global", "global"], 1]]},
        ),
        (
            {"num_hidden_layers": 4, "n_layer": 4, "first_k_dense_replace": 2, "mlp_layer_types": [*"abcd"]},
            {"num_hidden_layers": 2, "n_layer": 2, "first_k_dense_replace": 1, "mlp_layer_types": ["a", "c"]},
        ),
        ({"layer_types": ["x"] * 4}, {"layer_types": ["x"] * 4}),
    ],
    ids=str,
)
def test_other_spellings(given, found):
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    remember_removed(model, LayerUnit.LAYER, [1])
    remember_removed(model, LayerUnit.ATTENTION, [2])
    assert pruned_parts(model) == {"removed_layers": "1", "removed_attentions": "3"}
    assert pruned_config(given, model) == found


def test_every_file_of_the_folder_follows(fused, tiny_source, tmp_path):
    model = fused("llama")
    PruneLayers(layers="0+3")(model)
    source = tiny_source("llama")
    built = build(source, model, PLAIN, "text-generation-with-past", tmp_path, name="small")
    assert json.loads((tmp_path / "config.json").read_text())["num_hidden_layers"] == 3
    decoder = json.loads((tmp_path / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["num_hidden_layers"] == 3
    assert "and 3 pairs" in (tmp_path / "README.md").read_text()
    assert built.manifest.summary["removed_layers"] == "0+3"
    (tmp_path / "whole").mkdir()
    whole = build(source, fused("llama"), PLAIN, "text-generation-with-past", tmp_path / "whole", name="a")
    assert not any(key.startswith("removed") for key in whole.manifest.summary)


def test_the_width_of_an_ffn_where_all_have_the_same(fused):
    model = fused("llama")
    assert PruneMlp(share=0.5, score="magnitude", refit=False)(model).modified
    assert pruned_config({"intermediate_size": 80, "n": 1}, model) == {"intermediate_size": 40, "n": 1}
    assert pruned_parts(model) == {"removed_channels": "200 of 400"}
    PruneMlp(share=0.5, score="magnitude", refit=False, skip="layers.0")(model)
    assert pruned_config({"intermediate_size": 80}, model) == {"intermediate_size": 80}
