"""How much of a prompt one run reads."""

from onnxforge.runtimes.decoder_graph import DecoderGraph

CHUNK = 2048
_LOGITS_BYTES = 64 * 1024 * 1024


def prompt_chunk(graph: DecoderGraph, rows: int) -> int:
    """Prompt tokens per run.

    Bounds the attention scores of a long prompt and, where the graph can only give the logits of every token,
    their memory.
    """
    if graph.keeps_logits:
        return CHUNK
    return min(max(_LOGITS_BYTES // (4 * graph.vocabulary * rows), 1), CHUNK)
