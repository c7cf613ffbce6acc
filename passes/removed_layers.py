"""Which layers a model has lost, by the numbers that they had in its source: in its metadata, which is saved.

``onnxforge.removed_layers``, ``onnxforge.removed_attentions`` and ``onnxforge.removed_mlps``: numbers joined
by ``+``. A layer without its attention has no cache, so for the caches it is gone; a layer without its MLP
is still one.
"""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile

import onnx_ir as ir

from onnxforge.passes.layers import LayerUnit

_KEYS: Mapping[LayerUnit, str] = {
    LayerUnit.LAYER: "onnxforge.removed_layers",
    LayerUnit.ATTENTION: "onnxforge.removed_attentions",
    LayerUnit.MLP: "onnxforge.removed_mlps",
}


def removed(model: ir.Model, unit: LayerUnit) -> tuple[int, ...]:
    """Numbers in the source, in order; empty where none was removed."""
    said = model.metadata_props.get(_KEYS[unit], "")
    return tuple(int(word) for word in said.split("+") if word)


def without(model: ir.Model, unit: LayerUnit) -> tuple[int, ...]:
    """The layers of the source that have no attention any more (and so no cache), or no MLP, or neither."""
    return tuple(sorted({*removed(model, LayerUnit.LAYER), *removed(model, unit)}))


def remember_removed(model: ir.Model, unit: LayerUnit, numbers: Sequence[int]) -> tuple[int, ...]:
    """Add to the record what is gone now; ``numbers`` count the units that were left until then.

    Returns their numbers in the source.
    """
    before = set(without(model, unit))
    if unit is LayerUnit.MLP:
        before |= _ahead_of_attention(model)
    left = [number for number in range(max(numbers) + 1 + len(before)) if number not in before]
    originals = tuple(left[number] for number in numbers)
    model.metadata_props[_KEYS[unit]] = "+".join(map(str, sorted({*removed(model, unit), *originals})))
    return originals


def _ahead_of_attention(model: ir.Model) -> set[int]:
    """Layers in front of the first attention that is left: a layer begins with one, so their MLPs count for
    none and stay."""
    without_attention = set(without(model, LayerUnit.ATTENTION))
    return set(takewhile(without_attention.__contains__, count()))
