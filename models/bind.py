"""Bind a source's weights to the graph's initializers by name, lazily: nothing is read here.

Checkpoints spell names in more than one way: with or without the base model's prefix, with ``gamma`` and
``beta`` for a norm's weight and bias, under either name of a tied pair. All mismatches are reported at once.
"""

import re
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from onnxforge.models.errors import SourceError
from onnxforge.models.skeleton import Skeleton

_LEGACY = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("embed_out.weight", "lm_head.weight"),  # GPT-NeoX checkpoints, and what transformers saves of one today
)

_LEFTOVER = re.compile(r"inv_freq$|position_ids$|masked_bias$|attn\.bias$|attention\.bias$|\bversion$")
"""Buffers that older versions of modelling code wrote into checkpoints, and that are computed today."""

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
_SHOWN = 8


def own_names(weights: Mapping[str, ir.TensorProtocol], base_prefix: str, known: set[str]) -> dict[str, str]:
    """For each of ``known`` (parameter names of the model) that the checkpoint has: its name there."""
    found: dict[str, str] = {}
    for stored in weights:
        name = stored
        for old, new in _LEGACY:
            name = name.replace(old, new)
        candidates = (name, f"{base_prefix}.{name}", name.removeprefix(f"{base_prefix}."))
        match = next((c for c in candidates if c in known), None)
        if match is not None and found.get(match) != match:
            found[match] = stored
    return found


def tied_weights_differ(weights: Mapping[str, ir.TensorProtocol], skeleton: Skeleton) -> bool:
    """Whether the checkpoint holds both names of a tied pair with different values.

    Then the configuration is wrong and the file is right, which is also how transformers decides.
    """
    known = {*skeleton.aliases, *skeleton.aliases.values()}
    found = own_names(weights, skeleton.model.base_model_prefix, known)
    for alias, name in skeleton.aliases.items():
        if alias in found and name in found:
            one, other = weights[found[alias]], weights[found[name]]
            if one is not other and not np.array_equal(one.numpy(), other.numpy()):
                return True
    return False


def bind(graph: ir.Graph, weights: Mapping[str, ir.TensorProtocol], skeleton: Skeleton, ref: str) -> None:
    """Give every initializer without a value its tensor: float32, converted when it is read.

    Raises:
        SourceError: tensors are missing, have another shape, are not floating point, or stand beside bound
            ones without a place in the model; the message lists them all (the first few of each).
    """
    wanted = {name: value for name, value in graph.initializers.items() if value.const_value is None}
    other_names: dict[str, list[str]] = {}
    for alias, name in skeleton.aliases.items():
        other_names.setdefault(name, []).append(alias)
    known = {*wanted, *(alias for name in wanted for alias in other_names.get(name, []))}
    found = own_names(weights, skeleton.model.base_model_prefix, known)
    missing, wrong = [], []
    for name, value in wanted.items():
        stored = next((found[n] for n in (name, *other_names.get(name, [])) if n in found), None)
        if stored is None:
            missing.append(name)
            continue
        tensor = weights[stored]
        assert value.shape is not None
        declared, actual = tuple(value.shape), tuple(tensor.shape)
        if declared != actual:
            wrong.append(f"{stored} is {list(actual)}, the configuration needs {list(value.shape)}")
        elif tensor.dtype not in _FLOATS:
            wrong.append(f"{stored} is {tensor.dtype.name}, which is no floating-point type")
        else:
            value.const_value = as_float32(tensor, name)
            value.dtype = ir.DataType.FLOAT
    extra = _homeless(weights, set(weights) - set(found.values()), wanted, skeleton)
    _report(ref, missing, wrong, extra)


def as_float32(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
    """``tensor`` under ``name``, as float32, with its notes; read and converted only when somebody asks."""

    def read() -> ir.TensorProtocol:
        if tensor.dtype == ir.DataType.FLOAT:
            return tensor
        return ir.tensor(tensor.numpy().astype(np.float32), name=name)

    lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(tensor.shape.numpy()), name=name)
    lazy.meta.update(tensor.meta)  # the quantized blocks of a weight, for passes that can use them
    return lazy


def _homeless(
    weights: Mapping[str, ir.TensorProtocol],
    unused: set[str],
    wanted: Mapping[str, ir.Value],
    skeleton: Skeleton,
) -> list[str]:
    """Tensors that stand among bound ones and are read by nothing: the model is not what its config says.

    Other heads, poolers and optimizer leftovers are nobody's loss and are not listed, nor are biases of zero,
    which some packers gave to every layer.
    """
    prefix = skeleton.model.base_model_prefix
    base_layers = skeleton.layers.removeprefix(f"{prefix}.")
    modules = {name.rpartition(".")[0] for name in wanted}
    ignorable = [re.compile(pattern) for pattern in skeleton.ignored]
    extra = []
    for stored in sorted(unused):
        name = stored
        for old, new in _LEGACY:
            name = name.replace(old, new)
        bare = name.removeprefix(f"{prefix}.")
        if _LEFTOVER.search(name) or any(pattern.search(name) for pattern in ignorable):
            continue
        in_layers = bare.startswith(f"{base_layers}.")
        beside = any(n.rpartition(".")[0] in modules for n in (name, f"{prefix}.{name}", bare))
        if (in_layers or beside) and not _is_zero_bias(name, weights[stored]):
            extra.append(stored)
    return extra


def _is_zero_bias(name: str, tensor: ir.TensorProtocol) -> bool:
    return name.endswith(".bias") and len(tensor.shape) == 1 and not tensor.numpy().any()


def _report(ref: str, missing: list[str], wrong: list[str], extra: list[str]) -> None:
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {_some(missing)}")
    if wrong:
        parts.append(f"{len(wrong)} that do not fit: {_some(wrong)}")
    if extra:
        parts.append(f"{len(extra)} that the configuration has no place for: {_some(extra)}")
    if parts:
        raise SourceError(
            f"{ref}: the weights do not match config.json. Tensors: {'. '.join(parts)}. "
            "Check that config.json and the weight files belong together, and that the task is the one the "
            "model was trained for."
        )


def _some(names: list[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
