"""Tiny artifacts made by hand: a decoder and an encoder of two layers, with a tokenizer that knows words."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, save_model
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from onnxforge.compiler.eval_text import evaluation_text
from onnxforge.runtimes.artifact import FileRecord, Manifest, write_manifest

VOCABULARY, HEADS, WIDTH, LAYERS = 200, 2, 4, 2
HIDDEN = HEADS * WIDTH

MakeArtifact = Callable[..., Path]


@pytest.fixture(scope="session")
def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=["<unk>", "<s>"])
    tokenizer.train_from_iterator([evaluation_text().text], trainer)
    return tokenizer


@pytest.fixture
def make_artifact(tmp_path: Path, words: Tokenizer) -> MakeArtifact:
    """``make_artifact(name, noise=0.0, kind="decoder")``: a folder; ``noise`` is added to every weight."""

    def make(name: str, noise: float = 0.0, kind: str = "decoder", into: Path | None = None) -> Path:
        folder = into or tmp_path / name
        (folder / "onnx").mkdir(parents=True, exist_ok=True)
        weights = _weights(noise)
        model = _decoder(weights) if kind == "decoder" else _encoder(weights, labels=kind == "classifier")
        checker.check_model(model)
        path = folder / "onnx" / "model.onnx"
        save_model(model, path, save_as_external_data=True, location="model.onnx_data", size_threshold=128)
        words.save(str(folder / "tokenizer.json"))
        config = {"vocab_size": VOCABULARY, "max_position_embeddings": 96, "model_type": "llama"}
        (folder / "config.json").write_text(json.dumps(config))
        write_manifest(folder, _manifest(folder, name, kind))
        return folder

    return make


def _manifest(folder: Path, name: str, kind: str) -> Manifest:
    import hashlib

    files = tuple(
        FileRecord(str(f.relative_to(folder)), f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest())
        for f in sorted(folder.rglob("*"))
        if f.is_file() and f.name != "artifact.json"
    )
    task = {"decoder": "text-generation-with-past", "classifier": "text-classification"}
    return Manifest(
        name=name,
        task=task.get(kind, "feature-extraction"),
        model_type="llama" if kind == "decoder" else "bert",
        target="hand-made",
        pipeline=(),
        graph="onnx/model.onnx",
        provider="CPUExecutionProvider",
        session={},
        context_length=96,
        shared_cache=False,
        files=files,
    )


def _weights(noise: float) -> dict[str, np.ndarray]:
    rng, other = np.random.default_rng(7), np.random.default_rng(11)
    shapes = {"embed": (VOCABULARY, HIDDEN), "head": (HIDDEN, VOCABULARY), "label": (HIDDEN, 3)}
    for layer in range(LAYERS):
        shapes |= {f"{layer}.{part}": (HIDDEN, HIDDEN) for part in "qkvo"}
    return {
        name: (0.5 * (rng.normal(size=shape) + noise * other.normal(size=shape))).astype(np.float32)
        for name, shape in shapes.items()
    }


class _Graph:
    """Nodes in order, each named after what it makes."""

    def __init__(self, weights: dict[str, np.ndarray]) -> None:
        self.nodes: list = []
        self.initializers = {name: numpy_helper.from_array(value, name) for name, value in weights.items()}

    def add(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=f"/{output}", **attributes))
        return output

    def constant(self, name: str, values) -> str:
        self.initializers[name] = numpy_helper.from_array(np.asarray(values, dtype=np.int64), name)
        return name

    def heads(self, hidden: str, weight: str) -> str:
        flat = self.add("MatMul", [hidden, weight], f"{weight}_flat")
        split = self.add("Reshape", [flat, self.constant("split", [0, 0, HEADS, WIDTH])], f"{weight}_split")
        return self.add("Transpose", [split], f"{weight}_heads", perm=[0, 2, 1, 3])

    def merge(self, attention: str, hidden: str, layer: int) -> str:
        back = self.add("Transpose", [attention], f"back{layer}", perm=[0, 2, 1, 3])
        flat = self.add("Reshape", [back, self.constant("merge", [0, 0, HIDDEN])], f"merged{layer}")
        out = self.add("MatMul", [flat, f"{layer}.o"], f"out{layer}")
        return self.add("Add", [hidden, out], f"hidden{layer}")

    def model(self, inputs: list, outputs: list):
        used = {name for node in self.nodes for name in node.input}
        weights = [tensor for name, tensor in self.initializers.items() if name in used]
        graph = helper.make_graph(self.nodes, "tiny", inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def _ids(name: str, length: str = "sequence_length"):
    return helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", length])


def _cache(name: str, length: str):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch_size", HEADS, length, WIDTH])


def _decoder(weights: dict[str, np.ndarray]):
    """Causal over slots and masked by attention_mask; keys and values pass through the graph's cache."""
    g = _Graph(weights)
    zero, one = g.constant("zero", 0), g.constant("one", 1)
    total = g.add("Gather", [g.add("Shape", ["attention_mask"], "mask_shape"), one], "total")
    length = g.add("Gather", [g.add("Shape", ["input_ids"], "ids_shape"), one], "length")
    slots = g.add("Range", [g.add("Sub", [total, length], "past"), total, one], "slots")
    rows = g.add("Unsqueeze", [slots, g.constant("last", [1])], "rows")
    causal = g.add("LessOrEqual", [g.add("Range", [zero, total, one], "columns"), rows], "causal")
    real = g.add("Cast", ["attention_mask"], "real", to=TensorProto.BOOL)
    real = g.add("Unsqueeze", [real, g.constant("middle", [1, 2])], "real4")
    mask = g.add("And", [causal, real], "mask")
    hidden = g.add("Gather", ["embed", "input_ids"], "hidden")
    inputs, outputs = [_ids("input_ids"), _ids("attention_mask", "total_sequence_length")], []
    for layer in range(LAYERS):
        present = []
        for part, name in (("k", "key"), ("v", "value")):
            past, now = f"past_key_values.{layer}.{name}", f"present.{layer}.{name}"
            present.append(g.add("Concat", [past, g.heads(hidden, f"{layer}.{part}")], now, axis=2))
            inputs.append(_cache(past, "past_sequence_length"))
            outputs.append(_cache(now, "total_sequence_length"))
        query = g.heads(hidden, f"{layer}.q")
        attention = g.add("Attention", [query, *present, mask], f"attention{layer}")
        hidden = g.merge(attention, hidden, layer)
    g.add("MatMul", [hidden, "head"], "logits")
    logits = ["batch_size", "sequence_length", VOCABULARY]
    return g.model(inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits), *outputs])


def _encoder(weights: dict[str, np.ndarray], *, labels: bool):
    g = _Graph(weights)
    real = g.add("Cast", ["attention_mask"], "real", to=TensorProto.BOOL)
    columns = g.add("Unsqueeze", [real, g.constant("middle", [1, 2])], "columns")
    rows = g.add("Unsqueeze", [real, g.constant("outer", [1, 3])], "rows")
    every = g.add("Or", [rows, g.add("Not", [rows], "padding")], "every")
    mask = g.add("And", [columns, every], "mask")
    hidden = g.add("Gather", ["embed", "input_ids"], "hidden")
    for layer in range(LAYERS):
        q, k, v = (g.heads(hidden, f"{layer}.{part}") for part in "qkv")
        hidden = g.merge(g.add("Attention", [q, k, v, mask], f"attention{layer}"), hidden, layer)
    inputs = [_ids("input_ids"), _ids("attention_mask")]
    if labels:
        first = g.add("Gather", [hidden, g.constant("zero", 0)], "first", axis=1)
        g.add("MatMul", [first, "label"], "logits")
        shape = ["batch_size", 3]
        return g.model(inputs, [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)])
    g.add("Identity", [hidden], "last_hidden_state")
    shape = ["batch_size", "sequence_length", HIDDEN]
    return g.model(inputs, [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, shape)])
