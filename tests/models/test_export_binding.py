"""Weights by name: spellings of checkpoints, ties, dtypes, and mismatches reported all at once."""

import dataclasses

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.models.bind import as_float32
from onnxforge.models.errors import SourceError
from onnxforge.models.export import export_model


def _with(source, weights):
    return dataclasses.replace(source, weights=weights)


def _value(model: ir.Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor.dtype is ir.DataType.FLOAT
    return tensor.numpy()


def _small(tiny_source, model_type, task=None, **options):
    return tiny_source(model_type, task, num_hidden_layers=2, **options)


def test_no_weight_is_read_by_the_export(tiny_source):
    def fail():
        raise AssertionError("the export read a weight")

    source = _small(tiny_source, "llama")
    weights = {
        name: ir.LazyTensor(fail, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()))
        for name, tensor in source.weights.items()
        if name != "lm_head.weight"
    }
    export_model(_with(source, weights))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.float32])
def test_other_floats_become_float32_when_they_are_read(dtype):
    stored = ir.tensor(np.array([[1.5, -2.25], [0.125, 3.0]]).astype(dtype))
    bound = as_float32(stored, "w")
    assert (bound.name, bound.dtype) == ("w", ir.DataType.FLOAT)
    assert bound.numpy().dtype == np.float32
    np.testing.assert_array_equal(bound.numpy(), stored.numpy().astype(np.float32))


def test_the_base_prefix_may_be_missing_or_too_many(tiny_source):
    source = _small(tiny_source, "bert", "feature-extraction")
    prefixed = {f"bert.{name}": tensor for name, tensor in source.weights.items()}
    model = export_model(_with(source, prefixed), "feature-extraction")
    name = "encoder.layer.1.attention.self.query.weight"
    np.testing.assert_array_equal(_value(model, name), source.weights[name].numpy())

    headed = _small(tiny_source, "bert", "fill-mask")
    bare = {name.removeprefix("bert."): tensor for name, tensor in headed.weights.items()}
    model = export_model(_with(headed, bare), "fill-mask")
    np.testing.assert_array_equal(_value(model, f"bert.{name}"), bare[name].numpy())


def test_gamma_and_beta_are_a_norms_weight_and_bias(tiny_source):
    source = _small(tiny_source, "bert", "feature-extraction")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in source.weights.items()
    }
    model = export_model(_with(source, old), "feature-extraction")
    assert "embeddings.LayerNorm.gamma" in old
    np.testing.assert_array_equal(
        _value(model, "embeddings.LayerNorm.weight"), old["embeddings.LayerNorm.gamma"].numpy()
    )


def test_a_tied_weight_may_be_stored_under_its_other_name(tiny_source):
    source = _small(tiny_source, "llama")
    weights = dict(source.weights)
    embedding = weights.pop("model.embed_tokens.weight")
    model = export_model(_with(source, weights))
    np.testing.assert_array_equal(_value(model, "model.embed_tokens.weight"), embedding.numpy())


def test_the_file_decides_when_tied_weights_differ(tiny_source):
    source = _small(tiny_source, "llama")
    head = source.weights["lm_head.weight"].numpy() + 1
    model = export_model(_with(source, dict(source.weights) | {"lm_head.weight": ir.tensor(head)}))
    np.testing.assert_array_equal(_value(model, "lm_head.weight"), head)
    np.testing.assert_array_equal(
        _value(model, "model.embed_tokens.weight"), source.weights["model.embed_tokens.weight"].numpy()
    )


def test_other_heads_and_old_buffers_are_nobodys_loss(tiny_source):
    source = _small(tiny_source, "bert", "feature-extraction")
    extra = {
        "cls.predictions.bias": ir.tensor(np.zeros(97, np.float32)),
        "pooler.dense.weight": ir.tensor(np.zeros((64, 64), np.float32)),
        "embeddings.position_ids": ir.tensor(np.arange(40)[None]),
    }
    export_model(_with(source, dict(source.weights) | extra), "feature-extraction")


def test_all_mismatches_are_reported_at_once(tiny_source):
    source = _small(tiny_source, "llama")
    weights = dict(source.weights)
    del weights["model.layers.0.self_attn.q_proj.weight"], weights["model.norm.weight"]
    weights["model.layers.1.mlp.up_proj.weight"] = ir.tensor(np.zeros((3, 4), np.float32))
    weights["model.layers.1.mlp.down_proj.weight"] = ir.tensor(np.zeros((64, 80), np.int8))
    weights["model.layers.2.mlp.up_proj.weight"] = ir.tensor(np.zeros((80, 64), np.float32))
    weights["model.layers.0.self_attn.k_proj.bias"] = ir.tensor(np.eye(32, dtype=np.float32)[5])
    # Old packers gave every projection a bias, also those of models that have none: zeros lose nothing.
    weights["model.layers.0.self_attn.v_proj.bias"] = ir.tensor(np.zeros(32, np.float32))
    with pytest.raises(SourceError) as caught:
        export_model(_with(source, weights))
    message = str(caught.value)
    assert "2 missing: model.norm.weight, model.layers.0.self_attn.q_proj.weight" in message
    assert "model.layers.1.mlp.up_proj.weight is [3, 4], the configuration needs [80, 64]" in message
    assert "model.layers.1.mlp.down_proj.weight is INT8" in message
    assert "2 that the configuration has no place for: model.layers.0.self_attn.k_proj.bias" in message
    assert "model.layers.2.mlp.up_proj.weight" in message
    assert "tiny-llama" in message


def test_auto_is_the_task_that_the_files_imply(tiny_source):
    source = _small(tiny_source, "bert", "fill-mask")
    assert export_model(source, "auto").metadata_props["onnxforge.task"] == "fill-mask"
