r"""Fuse a graph of the TorchScript era and compare it with itself: attentions found, pass times, logits.

The graphs come from an environment of their own (optimum-onnx pins an older transformers)::

    python3.11 -m venv legacy && legacy/bin/pip install torch==2.13.0 transformers==4.57.6 optimum-onnx==0.1.0
    legacy/bin/python - <<'END'
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49152, max_position_embeddings=8192,
        rope_theta=100000.0, rms_norm_eps=1e-5, tie_word_embeddings=True)).save_pretrained("smol")
    BertModel(BertConfig()).save_pretrained("bert")
    END
    legacy/bin/optimum-cli export onnx --model smol --task text-generation-with-past --opset 18 \
        --no-post-process s/
    legacy/bin/optimum-cli export onnx --model bert --task feature-extraction --opset 18 b/

    python bench/legacy_fusion.py s/model.onnx --expect 30
    python bench/legacy_fusion.py b/model.onnx --expect 12
"""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.passes import notes
from onnxforge.passes.registry import pass_class

CHAIN = ("canonicalize", "fuse-norm", "fuse-rotary", "fuse-attention", "pack-qkv")
CLOSE = 1e-4
Feeds = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("graph", type=Path, help="an exported .onnx file")
    parser.add_argument("--expect", type=int, required=True, help="how many attentions it has")
    parser.add_argument("--context", type=int, default=8192, help="positions of the rotary tables")
    parser.add_argument(
        "--raw", action="store_true", help="run fuse-attention alone, on the graph as exported"
    )
    options = parser.parse_args()
    model = ir.load(options.graph)
    model.metadata_props["onnxforge.context_length"] = str(options.context)
    decoder = any(value.name.startswith("past") for value in model.graph.inputs)
    print(f"{options.graph}: {len(list(model.graph))} nodes, opset {model.opset_imports['']}")
    said = rewrite(model, ("fuse-attention",) if options.raw else CHAIN)
    fused = "GroupQueryAttention" if decoder else "MultiHeadAttention"
    count = sum(node.op_type == fused for node in model.graph)
    print(f"{fused}: {count} of {options.expect}; Softmax left: {ops(model)['Softmax']}")
    for note, times in Counter((n.kind.value, n.what, n.reason) for n in said).items():
        print(f"  {times:4d} x {' '.join(note)}")
    worst = compare(options.graph, model, decoder)
    print(f"largest difference of outputs, relative to the largest output: {worst:.2e}")
    return 0 if count == options.expect and worst < CLOSE else 1


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def rewrite(model: ir.Model, chain: tuple[str, ...]) -> list[notes.Note]:
    with notes.listen() as said:
        for name in chain:
            start = time.perf_counter()
            pass_class(name)()(model)
            print(f"  {name:16s} {time.perf_counter() - start:7.2f} s -> {len(list(model.graph))} nodes")
    return said


def compare(before: Path, model: ir.Model, decoder: bool) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx_data")
        sessions = [ort.InferenceSession(item, options, ["CPUExecutionProvider"]) for item in (before, path)]
        return worst_of_decoder(sessions) if decoder else worst_of_encoder(sessions)


def worst_of_encoder(sessions: list[ort.InferenceSession]) -> float:
    mask = np.array([[1] * 24, [1] * 15 + [0] * 9], np.int64)
    feeds = {"attention_mask": mask, "token_type_ids": np.zeros_like(mask)}
    feeds["input_ids"] = np.random.default_rng(0).integers(3, 20000, mask.shape)
    return difference([run(item, feeds)[1][mask.astype(bool)] for item in sessions])


def worst_of_decoder(sessions: list[ort.InferenceSession]) -> float:
    """A ragged prompt padded on the right, two single steps; then one row, a step, a block of five."""
    rng = np.random.default_rng(0)
    ragged = [[1] * 12, [1] * 7 + [0] * 5]
    grown = [ragged] + [[row + [1] * n for row in ragged] for n in (1, 2)]
    alone = [[[1] * n] for n in (20, 21, 26)]
    worst = 0.0
    for masks in (grown, alone):
        pasts = [nothing(item, len(masks[0])) for item in sessions]
        width = 0
        for rows in masks:
            mask = np.array(rows, np.int64)
            new, width = mask.shape[1] - width, mask.shape[1]
            feeds = {"attention_mask": mask, "input_ids": rng.integers(3, 20000, (len(rows), new))}
            feeds["position_ids"] = np.maximum(np.cumsum(mask, 1) - 1, 0)[:, -new:]
            results = [run(item, feeds | past) for item, past in zip(sessions, pasts, strict=True)]
            worst = max(worst, difference([logits[mask[:, -new:].astype(bool)] for _, logits in results]))
            pasts = [past for past, _ in results]
    return worst


def nothing(session: ort.InferenceSession, batch: int) -> Feeds:
    past = [item for item in session.get_inputs() if item.name.startswith("past")]
    return {item.name: np.zeros((batch, item.shape[1], 0, item.shape[3]), np.float32) for item in past}


def run(session: ort.InferenceSession, feeds: Feeds) -> tuple[Feeds, np.ndarray]:
    names = [item.name for item in session.get_outputs()]
    given = {item.name: feeds[item.name] for item in session.get_inputs()}
    results = dict(zip(names, session.run(names, given), strict=True))
    first = results.pop(names[0])
    return {name.replace("present", "past_key_values"): array for name, array in results.items()}, first


def difference(pair: list[np.ndarray]) -> float:
    return float(np.abs(pair[0] - pair[1]).max() / np.abs(pair[0]).max())


if __name__ == "__main__":
    raise SystemExit(main())
