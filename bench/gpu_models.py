"""Decoders of real shapes with seeded random weights, compiled for the CUDA targets: speed needs no training.

    python bench/gpu_models.py 0.5B --into /tmp/gpu-artifacts [--targets cuda-fp16 cuda-int8 cuda-int4]

A size is a configuration of transformers; parameters are drawn when they are written, so that nothing large
is in memory or on the disk but the artifact. `cuda-int4` is rounded to nearest here: AWQ and GPTQ would run
the model on calibration text for minutes, and leave the same operators. Any other model is built as
`compile --no-proof` builds it. The folders are laid out as `bench/targets.py --keep` lays them out,
``INTO/MODEL/TARGET``, and what is there is not built again.
"""

import argparse
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxforge.compiler import pipeline
from onnxforge.compiler.build import build, normalised
from onnxforge.compiler.speed_child import peak_rss
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.source import Json, Source, SourceKind
from onnxforge.models.tasks import task_for
from onnxforge.passes.lazy import lazy_tensor

CUDA_TARGETS = ("cuda-fp16", "cuda-int8", "cuda-int4")
_SPREAD = 0.02
"""Standard deviation of weights, as transformers initialises them."""
_NEEDS_DATA = ("correlate-inputs", "search-scales")
_LLAMA: dict[str, Json] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_QWEN: dict[str, Json] = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
_COMMON: dict[str, Json] = {
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Size:
    """A decoder's shape."""

    name: str
    like: str
    """The published model of this very shape."""
    config: Mapping[str, Json]


def _size(name: str, like: str, family: dict[str, Json], numbers: Sequence[int]) -> Size:
    """``numbers``: hidden, feed-forward, layers, heads, key/value heads, vocabulary."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size")
    return Size(name, like, family | _COMMON | dict(zip(names, numbers, strict=True)))


SIZES = (
    _size("tiny", "nothing: for a rehearsal", _LLAMA, (128, 256, 2, 4, 2, 512)),
    _size("0.13B", "SmolLM2-135M", _LLAMA, (576, 1536, 30, 9, 3, 49152)),
    _size("0.5B", "Qwen2.5-0.5B", _QWEN, (896, 4864, 24, 14, 2, 151936)),
    _size("1.5B", "Qwen2.5-1.5B", _QWEN, (1536, 8960, 28, 12, 2, 151936)),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=f"{', '.join(size.name for size in SIZES)}; or what `compile` takes")
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(CUDA_TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    targets = [normalised(next(t for t in TARGETS if t.name == name)) for name in asked.targets]
    size = next((size for size in SIZES if size.name == asked.model), None)
    if size is not None:
        targets = [rounded_to_nearest(target) for target in targets]
    into = asked.into / asked.model
    absent = [target for target in targets if not (into / target.name / "artifact.json").is_file()]
    if absent:
        build_all(seeded_source(size, asked.seed) if size else open_model(asked.model), absent, into)
    return 0


def build_all(source: Source, targets: Sequence[Target], into: Path) -> None:
    """An unproven artifact of each target in its own folder of ``into``; prints what each step took."""
    started = time.perf_counter()
    exported = export_model(source)
    print(f"{source.ref}: export {time.perf_counter() - started:.1f} s", flush=True)
    for target in targets:
        started, folder = time.perf_counter(), into / target.name
        folder.mkdir(parents=True, exist_ok=True)
        build(source, exported, target, task_for(source), folder, name=target.name)
        seconds = time.perf_counter() - started
        print(f"{target.name}: {seconds:.1f} s, peak RSS {peak_rss() / 1e9:.2f} GB so far", flush=True)


def rounded_to_nearest(target: Target) -> Target:
    """The target, without steps that would run the model."""
    steps = pipeline.parse(target.passes)
    present = {step.pass_name() for step in steps}
    without = [name for name in _NEEDS_DATA if name in present]
    settings = ["quantize-weights.method=rtn"] if without else []
    edited = pipeline.edit(steps, settings=settings, without=without)
    return replace(target, passes=tuple(step.text() for step in edited))


def seeded_source(size: Size, seed: int = 0) -> Source:
    """A model of ``size``. Its tokenizer knows a handful of words: requests are token ids."""
    weights = {name: _drawn(name, shape, seed) for name, shape in _parameters(size.config).items()}
    sidecars = {"tokenizer.json": _tokenizer(), "tokenizer_config.json": b"{}"}
    return Source(f"seeded-{size.name}", SourceKind.FOLDER, size.config, weights, sidecars)


def _parameters(config: Mapping[str, Json]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the checkpoint of such a model has them; a tied head is not stored."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    names = model.state_dict()
    return {name: tuple(t.shape) for name, t in names.items() if name != "lm_head.weight"}


def _drawn(name: str, shape: tuple[int, ...], seed: int) -> ir.TensorProtocol:
    def compute() -> np.ndarray:
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        values = rng.standard_normal(shape, dtype=np.float32) * np.float32(_SPREAD)
        return values + np.float32(name.endswith("norm.weight"))

    return lazy_tensor(compute, dtype=ir.DataType.FLOAT, shape=shape, name=name)


def _tokenizer() -> bytes:
    from tokenizers import Tokenizer, models

    text: str = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>")).to_str()
    return text.encode()


if __name__ == "__main__":
    raise SystemExit(main())
