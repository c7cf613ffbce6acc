"""Which forms of QuantizeLinear and DequantizeLinear a provider has integer kernels for.

CPU: every combination was run in ONNX Runtime 1.31.1, with its optimizers on and off, as MatMul and as Gemm.
CUDA and TensorRT: from the sources and documentation of ONNX Runtime 1.31.1 and TensorRT 10.15.

A form that a provider would only dequantize again, in every call and in front of a float product, is refused
like one that it fails on: it would be slower than no quantization at all.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from onnxforge.passes.qdq_scheme import ACTIVATIONS, BLOCKED_SINCE, NONE, TYPES, WEIGHTS, Granularity

ANY = "any"
BLOCK_SIZES = (16, 32, 64, 128, 256)
"""What MatMulNBits takes, which a DequantizeLinear of blocks becomes."""
_AXES_AS_INPUT = 18
"""Opset since which ReduceMax takes its axes as an input."""
_FORMS = tuple(str(form) for form in Granularity)


@dataclass(frozen=True)
class Form:
    """The options of ``insert-qdq`` that decide which kernel can take the result."""

    weights: str
    granularity: str
    block_size: int
    symmetric: bool
    activations: str
    symmetric_activations: bool
    dynamic: bool
    per_token: bool
    reduce_range: bool
    embeddings: bool


def objection(form: Form, provider: str, opset: int) -> str:
    """Why ``form`` cannot be used, and what can instead; empty where it can."""
    if provider not in (*_PROVIDERS, ANY):
        return f"provider is {provider!r}; use one of {', '.join((*_PROVIDERS, ANY))}"
    found = _spelling(form) or _onnx(form, opset)
    return found if found or provider == ANY else _PROVIDERS[provider](form)


def _spelling(form: Form) -> str:
    for name, value, known in (
        ("weights", form.weights, WEIGHTS),
        ("granularity", form.granularity, _FORMS),
        ("activations", form.activations, ACTIVATIONS),
    ):
        if value not in known:
            return f"{name} is {value!r}; use one of {', '.join(known)}"
    if form.block_size not in BLOCK_SIZES:
        return f"block_size is {form.block_size}; use one of {', '.join(map(str, BLOCK_SIZES))}"
    return ""


def _onnx(form: Form, opset: int) -> str:
    """What the operators themselves do not take."""
    if form.dynamic and (form.activations != "uint8" or form.symmetric_activations):
        return "DynamicQuantizeLinear makes asymmetric uint8 and nothing else; use activations=uint8"
    if form.per_token and (form.dynamic or form.activations != "uint8" or form.symmetric_activations):
        return "per_token writes centred uint8 and nothing else; use activations=uint8 and dynamic=false"
    if form.reduce_range and form.weights != "int8":
        return (
            f"reduce_range is about sums of uint8 x int8 products, and weights={form.weights}; leave it out"
        )
    if form.embeddings and TYPES[form.weights].bits != 8:
        return f"Gather has no kernel for {form.weights}; use weights=int8, or embeddings=false"
    kinds = [form.weights, *([form.activations] if form.activations != NONE else [])]
    needed = max(TYPES[kind].since for kind in kinds)
    if form.per_token:
        needed = max(needed, _AXES_AS_INPUT)
    if form.granularity == Granularity.BLOCK or form.embeddings:
        needed = max(needed, BLOCKED_SINCE)
    if opset < needed:
        return (
            f"this form needs opset {needed} and the graph has {opset}; put `canonicalize` before this pass"
        )
    return ""


def _cpu(form: Form) -> str:
    floats = form.activations == NONE
    if form.weights == "int16":
        return (
            "the CPU has no kernel for 16-bit weights and would dequantize them in every call; use "
            "weights=int8, or provider=any to write them all the same"
        )
    if floats:
        return ""
    if TYPES[form.activations].bits != 8:
        return (
            f"the CPU has no kernel for {form.activations} activations and would multiply in float after "
            "dequantizing both sides; use activations=uint8, or activations=none for weights only"
        )
    if TYPES[form.weights].bits != 8:
        return (
            f"the CPU has no kernel that multiplies 8-bit activations by {form.weights} weights and would "
            "dequantize both in every call; use weights=int8, or activations=none for weights only"
        )
    if form.granularity == Granularity.BLOCK:
        return (
            "the CPU fuses quantized activations with blockwise weights into an operator that takes no scale "
            "per block, and fails when it runs; use granularity=channel, or activations=none"
        )
    return ""


def _cuda(form: Form) -> str:
    if form.activations != NONE:
        return (
            "CUDA has no int8 product behind QuantizeLinear and DequantizeLinear and would run both around a "
            "float MatMul; use activations=none, or quantize-weights"
        )
    if form.weights == "int16":
        return "CUDA would dequantize 16-bit weights in every call; use weights=int8"
    if form.embeddings:
        return (
            "GatherBlockQuantized is CUDA's quantized lookup; use quantize-weights and fuse-quantized-gather"
        )
    return ""


def _tensorrt(form: Form) -> str:
    if form.activations == NONE:
        return (
            "TensorRT multiplies in int8 only where both sides are; use activations=int8 and "
            "symmetric_activations=true, or the CUDA provider for weights only"
        )
    if form.dynamic:
        return "TensorRT's parser has no DynamicQuantizeLinear; calibrate, and use dynamic=false"
    if form.weights != "int8" or not form.symmetric:
        return "TensorRT wants int8 weights with zero points of 0; use weights=int8 and symmetric=true"
    if form.activations != "int8" or not form.symmetric_activations:
        return (
            "TensorRT wants int8 activations with zero points of 0; use activations=int8 and "
            "symmetric_activations=true"
        )
    if form.granularity == Granularity.BLOCK:
        return "TensorRT has no int8 product with a scale per block; use granularity=channel"
    if form.embeddings:
        return "TensorRT has no Gather of int8; use embeddings=false"
    return ""


_PROVIDERS: Mapping[str, Callable[[Form], str]] = {"cpu": _cpu, "cuda": _cuda, "tensorrt": _tensorrt}
