"""The graph that passes may rely on: inputs and outputs, attention form, masks, names, metadata."""

import subprocess
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.models.export import export_model
from onnxforge.models.source import Source, SourceKind


def _operators(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]


def _io(values) -> list[tuple[str, list[str]]]:
    return [(value.name, [str(dim) for dim in value.shape]) for value in values]


def test_decoder_inputs_and_outputs_follow_the_contract(tiny_export):
    graph = tiny_export("llama").graph
    past = ["batch_size", "2", "past_sequence_length", "16"]
    present = ["batch_size", "2", "total_sequence_length", "16"]
    kv = [f"{layer}.{part}" for layer in range(5) for part in ("key", "value")]
    assert _io(graph.inputs) == [
        ("input_ids", ["batch_size", "sequence_length"]),
        ("attention_mask", ["batch_size", "total_sequence_length"]),
        ("position_ids", ["batch_size", "sequence_length"]),
        *((f"past_key_values.{name}", past) for name in kv),
    ]
    assert _io(graph.outputs) == [
        ("logits", ["batch_size", "sequence_length", "97"]),
        *((f"present.{name}", present) for name in kv),
    ]
    assert {value.dtype for value in graph.inputs[:3]} == {ir.DataType.INT64}
    assert {value.dtype for value in (*graph.inputs[3:], *graph.outputs)} == {ir.DataType.FLOAT}


def test_metadata_says_what_the_graph_is(tiny_export):
    assert tiny_export("llama").metadata_props == {
        "onnxforge.task": "text-generation-with-past",
        "onnxforge.model_type": "llama",
        "onnxforge.context_length": "64",
        "onnxforge.source": "tiny-llama",
    }
    # RoBERTa's positions start after the padding index: two rows of its table of 40 are never used.
    assert tiny_export("roberta", "fill-mask").metadata_props["onnxforge.context_length"] == "38"


@pytest.mark.parametrize(("model_type", "masks"), [("llama", 1), ("gemma3_text", 2), ("exaone4", 2)])
def test_each_layer_is_one_attention_and_each_window_one_mask(model_type, masks, tiny_export):
    attentions = _operators(tiny_export(model_type), "Attention")
    assert len(attentions) == 5
    assert len({node.inputs[3] for node in attentions}) == masks
    for index, node in enumerate(attentions):
        key, value = node.inputs[1], node.inputs[2]
        assert [key.name, value.name] == [f"present.{index}.key", f"present.{index}.value"]
        concat = key.producer()
        assert [concat.op_type, concat.inputs[0].name] == ["Concat", f"past_key_values.{index}.key"]
        assert concat.attributes["axis"].as_int() == 2
        assert [str(dim) for dim in node.inputs[3].shape][1:] == [
            "1",
            "sequence_length",
            "total_sequence_length",
        ]
        assert node.inputs[3].dtype is ir.DataType.BOOL
        assert {"q_num_heads", "kv_num_heads"}.isdisjoint(node.attributes)


def test_softcap_is_an_attribute_of_the_attention(tiny_export):
    nodes = _operators(tiny_export("gemma2"), "Attention")
    assert [node.attributes["softcap"].as_float() for node in nodes] == [5.0] * 5
    assert nodes[0].attributes["scale"].as_float() == pytest.approx(24**-0.5)


def test_names_are_unique_and_hierarchical_and_nothing_of_torch_is_left(tiny_export):
    model = tiny_export("llama")
    names = [node.name for node in model.graph]
    values = [value.name for node in model.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)
    assert {"/model/layers.4/self_attn/q_proj/MatMul", "/model/layers.0/self_attn/Attention"} <= set(names)
    assert all(not node.metadata_props and not node.doc_string for node in model.graph)
    assert {node.domain for node in model.graph} == {""}
    assert model.opset_imports == {"": 23}
    assert not _operators(model, "Identity")
    assert not _operators(model, "Constant")
    # What a layer calls its own depends on it: shared values are named after the layers' parent.
    shared = [
        name for name in names if name.startswith("/model/layers.0/") and name.endswith(("Range", "Cos"))
    ]
    assert not shared


def test_tied_embeddings_are_one_initializer(tiny_export):
    initializers = tiny_export("llama").graph.initializers
    assert "model.embed_tokens.weight" in initializers
    assert "lm_head.weight" not in initializers


def test_weights_keep_their_names_and_shapes(tiny_export, tiny_source):
    initializers = tiny_export("qwen3").graph.initializers
    weights = {name: t for name, t in tiny_source("qwen3").weights.items() if name != "lm_head.weight"}
    assert {name: tuple(initializers[name].shape) for name in weights} == {
        name: tuple(tensor.shape) for name, tensor in weights.items()
    }


@pytest.mark.parametrize("model_type", ["gemma3_text", "mpnet"])
def test_the_graph_passes_the_checker(model_type, tiny_export):
    onnx.checker.check_model(ir.to_proto(tiny_export(model_type)), full_check=True)


def test_layers_that_differ_by_index_are_not_mistaken_for_one_kind(tiny_export, tiny_torch):
    import torch

    options = {"scale_attn_by_inverse_layer_idx": True, "n_layer": 3}
    exported = tiny_export("gpt2", **options)
    scales = [node.attributes["scale"].as_float() for node in _operators(exported, "Attention")]
    assert scales == pytest.approx([16**-0.5 / (index + 1) for index in range(3)])
    ids = np.array([[5, 6, 7, 8]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(4)[None]}
    empty = np.zeros((1, 4, 0, 16), np.float32)
    feed |= {f"past_key_values.{i}.{kv}": empty for i in range(3) for kv in ("key", "value")}
    session = ort.InferenceSession(ir.to_proto(exported).SerializeToString())
    with torch.no_grad():
        expected = tiny_torch("gpt2", **options)(torch.tensor(ids)).logits.numpy()
    assert np.abs(session.run(["logits"], feed)[0] - expected).max() < 1e-4


def test_a_row_of_padding_only_gives_no_nan(tiny_export):
    ids = np.array([[5, 6, 7], [0, 0, 0]])
    feed = {
        "input_ids": ids,
        "attention_mask": np.array([[1, 1, 1], [0, 0, 0]]),
        "position_ids": np.array([[0, 1, 2], [0, 0, 0]]),
    }
    empty = np.zeros((2, 2, 0, 16), np.float32)
    feed |= {f"past_key_values.{i}.{kv}": empty for i in range(5) for kv in ("key", "value")}
    session = ort.InferenceSession(ir.to_proto(tiny_export("llama")).SerializeToString())
    assert np.isfinite(session.run(["logits"], feed)[0]).all()


_DIGEST = """
import hashlib, onnx_ir as ir
from onnxforge.models.export import export_model
from onnxforge.models.source import Source, SourceKind
config = {"model_type": "gemma3_text", "vocab_size": 11, "hidden_size": 16, "intermediate_size": 16,
          "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
          "max_position_embeddings": 32, "sliding_window": 4,
          "layer_types": ["sliding_attention", "full_attention"] * 2}
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig
torch.manual_seed(0)
state = Gemma3ForCausalLM(Gemma3TextConfig(**config)).state_dict()
weights = {name: ir.tensor(value.numpy()) for name, value in state.items()}
model = export_model(Source("m", SourceKind.FOLDER, config, weights), "text-generation-with-past")
print(hashlib.sha256(ir.to_proto(model).SerializeToString(deterministic=True)).hexdigest())
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_hash_seed():
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", _DIGEST], env={"PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in ("1", "4")
    ]
    digests = [run.communicate()[0].strip().splitlines()[-1] for run in runs]
    assert digests[0] == digests[1]


def test_an_onnx_source_needs_its_graph():
    with pytest.raises(ValueError, match="needs the path"):
        export_model(Source("x.onnx", SourceKind.ONNX, {}))
