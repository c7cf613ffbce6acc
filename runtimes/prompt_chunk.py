"""How much of a prompt one run reads."""

from onnxforge.runtimes.decoder_graph import DecoderGraph

CHUNK = 2048
QUANTIZED_CHUNK = 512
"""The CPU's attention over an int8 cache computes the scores of future tokens too and throws them away:
shorter chunks leave fewer of them (2048 at once take 1.4 times as long as in four parts)."""
_LOGITS_BYTES = 64 * 1024 * 1024


def prompt_chunk(graph: DecoderGraph, rows: int) -> int:
    """Prompt tokens per run.

    Bounds the attention scores of a long prompt and, where the graph can only give the logits of every token,
    their memory.
    """
    chunk = QUANTIZED_CHUNK if graph.quantized_cache and graph.device == "cpu" else CHUNK
    if graph.keeps_logits:
        return chunk
    return min(max(_LOGITS_BYTES // (4 * graph.vocabulary * rows), 1), chunk)
