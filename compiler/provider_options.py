"""What an artifact tells its execution provider, beyond the session: options that follow from the model."""

from collections.abc import Callable, Mapping

from onnxforge.compiler.graph_facts import GraphFacts
from onnxforge.compiler.targets import TENSORRT

_SHAPES = {"min": (1, 1), "opt": (8, 128), "max": (64, 512)}
"""Batch and sequence of a TensorRT profile: the least, what engines are tuned for, and the most."""


def provider_options(provider: str, facts: GraphFacts, context_length: int) -> Mapping[str, str]:
    """Options of ``provider`` for this graph, as ONNX Runtime spells them; empty for one that needs none."""
    make = _MAKERS.get(provider)
    return make(facts, context_length) if make is not None else {}


def _tensorrt(facts: GraphFacts, context_length: int) -> dict[str, str]:
    """One engine for all shapes between the profile's ends, kept on disk.

    Neither ``trt_fp16_enable`` nor ``trt_int8_enable``: without them the provider builds a strongly typed
    network, in which types are as the graph writes them. TensorRT 11 builds no other.
    """
    options = {"trt_engine_cache_enable": "1", "trt_timing_cache_enable": "1"}
    for name, (batch, sequence) in _SHAPES.items():
        shape = f"{batch}x{min(sequence, context_length)}"
        shapes = ",".join(f"{fed}:{shape}" for fed in facts.inputs)
        options[f"trt_profile_{name}_shapes"] = shapes
    return options


_MAKERS: Mapping[str, Callable[[GraphFacts, int], dict[str, str]]] = {TENSORRT: _tensorrt}
