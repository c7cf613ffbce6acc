"""How export time and memory grow with depth: SmolLM2 shapes, weights that must not be read.

Run ``python bench/export_scaling.py [depth ...]``. Every depth runs in a process of its own; the time of
importing torch and transformers, which every run pays once, stands apart.
"""

import json
import resource
import subprocess
import sys
import time
from typing import NoReturn

SMOLLM2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
}


def unread(shape: tuple[int, ...]) -> object:
    """A bfloat16 tensor of ``shape`` that fails when anybody reads it."""
    import onnx_ir as ir

    def read() -> NoReturn:
        raise AssertionError("the export read a weight")

    return ir.LazyTensor(read, dtype=ir.DataType.BFLOAT16, shape=ir.Shape(shape))


def weights(depth: int) -> dict[str, object]:
    """SmolLM2-135M's parameters at ``depth`` layers."""
    width, key_value, inner = 576, 192, 1536
    layer = {
        "input_layernorm": (width,),
        "post_attention_layernorm": (width,),
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (key_value, width),
        "self_attn.v_proj": (key_value, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    shapes = {"model.embed_tokens.weight": (49152, width), "model.norm.weight": (width,)}
    for index in range(depth):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {name: unread(shape) for name, shape in shapes.items()}


def measure(depth: int) -> dict[str, float]:
    """Export once in this process: seconds by the clock and of CPU, peak resident MiB before and after."""
    started = time.perf_counter()
    import torch.onnx  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    from onnxforge.models.export import export_model
    from onnxforge.models.source import Source, SourceKind

    imported = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu = time.process_time()
    source = Source("bench", SourceKind.FOLDER, SMOLLM2 | {"num_hidden_layers": depth}, weights(depth))
    model = export_model(source)
    done = time.perf_counter()
    return {
        "layers": depth,
        "nodes": len(model.graph),
        "import_s": round(imported - started, 2),
        "export_s": round(done - imported, 2),
        "export_cpu_s": round(time.process_time() - cpu, 2),
        "rss_imports_mib": round(before),
        "rss_peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    """Print one line per depth."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return
    for depth in [int(text) for text in sys.argv[1:]] or [2, 8, 30]:
        command = [sys.executable, __file__, "--one", str(depth)]
        print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
