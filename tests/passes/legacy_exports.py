"""Graphs as the TorchScript exporter wrote them before opset 18: the other world that users bring."""

import io
import logging
import warnings

import numpy as np
import onnx
import onnx_ir as ir
import torch

_MADE: dict[str, ir.Model] = {}


class _Decoder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, *past):
        from transformers import DynamicCache

        cache = DynamicCache()
        for index in range(len(past) // 2):
            cache.update(past[2 * index], past[2 * index + 1], index)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
        )
        return (
            out.logits,
            *(part for layer in out.past_key_values.layers for part in (layer.keys, layer.values)),
        )


class _Encoder(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


def legacy_decoder(model: torch.nn.Module, opset: int = 17) -> ir.Model:
    """A fresh copy of the old export of a tiny decoder with past; the metadata names its context length."""
    config = model.config
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    names = [f"past_key_values.{i}.{part}" for i in range(layers) for part in ("key", "value")]
    arguments = (
        torch.randint(3, 90, (2, 3)),
        torch.ones(2, 8, dtype=torch.long),
        torch.arange(5, 8).repeat(2, 1),
        *(torch.randn(2, kv_heads, 5, width) for _ in names),
    )
    batch = {0: "batch_size"}
    axes = {
        "input_ids": batch | {1: "sequence_length"},
        "attention_mask": batch | {1: "total_sequence_length"},
        "position_ids": batch | {1: "sequence_length"},
        **{name: batch | {2: "past_sequence_length"} for name in names},
    }
    outputs = ["logits", *(name.replace("past_key_values", "present") for name in names)]
    exported = _export(f"{config.model_type}{opset}", _Decoder(model), arguments, axes, outputs, opset)
    exported.metadata_props["onnxforge.context_length"] = str(config.max_position_embeddings)
    return exported


def legacy_encoder(model: torch.nn.Module, opset: int = 17) -> ir.Model:
    """A fresh copy of the old export of a tiny encoder."""
    arguments = (torch.randint(3, 90, (2, 5)), torch.ones(2, 5, dtype=torch.long))
    axes = {name: {0: "batch_size", 1: "sequence_length"} for name in ("input_ids", "attention_mask")}
    name = f"{model.config.model_type}{opset}"
    return _export(name, _Encoder(model), arguments, axes, ["last_hidden_state"], opset)


def _export(key: str, module, arguments, axes, outputs, opset) -> ir.Model:
    if key not in _MADE:
        buffer = io.BytesIO()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logging.getLogger("torch.onnx").setLevel(logging.ERROR)
            torch.onnx.export(
                module.eval(),
                arguments,
                buffer,
                dynamo=False,
                opset_version=opset,
                input_names=list(axes),
                output_names=outputs,
                dynamic_axes=axes,
            )
        _MADE[key] = ir.from_proto(onnx.load_from_string(buffer.getvalue()))
    return _MADE[key].clone()


def decoder_feeds(model: ir.Model, batch: int, new: int, past: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a decoder: ids, a mask of ones, positions that differ from row to row, and a random past."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, np.ndarray] = {
        "input_ids": rng.integers(3, 90, (batch, new)),
        "attention_mask": np.ones((batch, past + new), np.int64),
        "position_ids": np.arange(past, past + new)[None] + np.arange(batch)[:, None],
    }
    sizes = {"batch_size": batch, "past_sequence_length": past}
    for value in model.graph.inputs:
        if value.name not in feeds:
            shape = [dim if isinstance(dim, int) else sizes[dim.value] for dim in value.shape]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds
