"""How much of a prompt one run reads."""

from onnxforge.runtimes.decoder_graph import DecoderGraph

CHUNK = 2048
CPU_CHUNK = 256
"""The CPU's GroupQueryAttention computes the scores of future tokens too and throws them away: shorter chunks
leave fewer of them, and 256 rows still fill the kernels of matrix products. SmolLM2-135M in int8 reads 512
and 2048 tokens 1.08x as fast as at once, in fp32 1.03x and 1.00x; with an int8 cache four parts are 1.4x.
The logits are the same, bit for bit, while chunks are even (docs/decisions/0016)."""
_LOGITS_BYTES = 64 * 1024 * 1024


def prompt_chunk(graph: DecoderGraph, rows: int) -> int:
    """Prompt tokens per run.

    Bounds the attention scores of a long prompt and, where the graph can only give the logits of every token,
    their memory.
    """
    chunk = CPU_CHUNK if graph.shared_cache and graph.on_host else CHUNK
    if graph.keeps_logits:
        return chunk
    return min(max(_LOGITS_BYTES // (4 * graph.vocabulary * rows), 1), chunk)
