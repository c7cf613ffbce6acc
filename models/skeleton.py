"""A model without weights, cut down to one layer of each kind, and what it takes to grow it back.

The whole model is built on torch's ``meta`` device (shapes, no storage), so that every layer is made with its
true index. Layers whose modules are equal in everything but their index and their weights are one *kind*;
one layer of each kind stays, and tracing costs the same for 2 layers and for 80.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.families import Family
from onnxforge.models.module_forms import use_forms

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_INDEX_NAMES = frozenset({"layer_idx", "layer_id", "layer_index"})


@dataclass(frozen=True)
class Skeleton:
    """What is traced, and how the traced layers make up the model."""

    model: "PreTrainedModel"
    """On the meta device, in evaluation mode, with one layer of each kind."""
    layers: str
    """Dotted path from the model to its layers: ``model.layers``."""
    kinds: tuple[int, ...]
    """For each layer of the full model, the position of its kind among the traced layers."""
    buffers: dict[str, np.ndarray]
    """Values of buffers that checkpoints do not hold (rotary frequencies, position ids), by dotted name."""
    aliases: dict[str, str]
    """Names of tied parameters that are not the canonical one, to the canonical one."""
    ignored: tuple[str, ...]
    """Regular expressions of checkpoint names that the architecture is known to leave unused."""

    @property
    def traced_layers(self) -> int:
        """How many layers the traced model has."""
        return max(self.kinds) + 1


def build_skeleton(
    model_class: "type[PreTrainedModel]", config: "PretrainedConfig", family: Family, *, pooled: bool
) -> Skeleton:
    """Build ``model_class`` without storage and keep one layer of each kind.

    ``pooled`` says whether the class wants its pooling head (classification) where it can be left out.

    Raises:
        UnsupportedModel: the layers are not where the family's record says.
    """
    import torch

    with torch.device("meta"):
        # Feature extraction gives token states; a pooler would only ask the checkpoint for weights.
        bare = not pooled and _takes_pooling(model_class)
        model = model_class(config, add_pooling_layer=False) if bare else model_class(config)
    model = model.eval().requires_grad_(False)
    base_prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    path = f"{base_prefix}{family.layers}"
    try:
        layers = model.get_submodule(path)
    except AttributeError:
        layers = None
    if not isinstance(layers, torch.nn.ModuleList) or len(layers) != config.num_hidden_layers:
        raise UnsupportedModel(
            f"{family.model_type}: expected {config.num_hidden_layers} layers at {path!r} of "
            f"{model_class.__name__}, and they are not there in this version of transformers."
        )
    use_forms(model)
    aliases = _aliases(model)
    kinds = _keep_one_of_each_kind(layers, config)
    return Skeleton(
        model=model,
        layers=path,
        kinds=kinds,
        buffers=_real_buffers(model),
        aliases=aliases,
        ignored=tuple(model._keys_to_ignore_on_load_unexpected or ()),
    )


def _takes_pooling(model_class: "type[PreTrainedModel]") -> bool:
    import inspect

    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _aliases(model: "PreTrainedModel") -> dict[str, str]:
    canonical = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: canonical[id(p)] for name, p in everything if canonical[id(p)] != name}


def _keep_one_of_each_kind(layers: "torch.nn.ModuleList", config: "PretrainedConfig") -> tuple[int, ...]:
    """Drop the layers that repeat an earlier one; the position of each layer's kind among those that stay."""
    layer_types = getattr(config, "layer_types", None)
    first: dict[tuple[object, ...], int] = {}
    kinds, kept, kept_types = [], [], []
    for index, layer in enumerate(layers):
        layer_type = layer_types[index] if layer_types else None
        kind = (layer_type, *_fingerprint(layer))
        if kind not in first:
            first[kind] = len(first)
            kept.append(layer)
            kept_types.append(layer_type)
        kinds.append(first[kind])
    del layers[:]
    layers.extend(kept)
    for position, layer in enumerate(kept):
        for module in layer.modules():
            # The cache of the traced model counts the traced layers.
            for name in _INDEX_NAMES & vars(module).keys():
                setattr(module, name, position)
    config.num_hidden_layers = len(kept)
    if layer_types:
        config.layer_types = kept_types
    return tuple(kinds)


def _fingerprint(layer: "torch.nn.Module") -> tuple[object, ...]:
    """Everything about a layer that shapes its computation, but its index and the values of its weights."""
    parts: list[object] = []
    for name, module in layer.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, bool | int | float | str | tuple | None) and key not in _INDEX_NAMES
        }
        tensors = [(key, tuple(t.shape)) for key, t in module._parameters.items() if t is not None]
        tensors += [(key, tuple(t.shape)) for key, t in module._buffers.items() if t is not None]
        parts.append((name, type(module).__qualname__, repr(sorted(plain.items())), tuple(tensors)))
    return tuple(parts)


def _real_buffers(model: "PreTrainedModel") -> dict[str, np.ndarray]:
    """Compute every buffer of the traced model the way transformers does when a checkpoint is loaded.

    Each buffer gets storage filled with a value that no initialiser writes; whatever still holds it
    afterwards was not computed, and exporting it would be silently wrong.
    """
    import torch

    values: dict[str, np.ndarray] = {}
    for path, module in model.named_modules():
        meta = {name: buffer for name, buffer in module._buffers.items() if buffer is not None}
        if not meta:
            continue
        for name, buffer in meta.items():
            module._buffers[name] = torch.full(tuple(buffer.shape), _unset(buffer), dtype=buffer.dtype)
        model._init_weights(module)
        for name, buffer in meta.items():
            real = module._buffers[name]
            full_name = f"{path}.{name}" if path else name
            if real is None or bool((real == _unset(buffer)).any()):
                raise UnsupportedModel(
                    f"{type(model).__name__}: the buffer {full_name!r} is in no checkpoint, and this version "
                    "of transformers has no initialiser for it."
                )
            values[full_name] = real.numpy()
    return values


def _unset(buffer: "torch.Tensor") -> float | int:
    return -3.0e38 if buffer.is_floating_point() else -(2**31) + 1
