"""How far a model is from itself without some units of one place, as measured; on a value, never saved."""

from dataclasses import dataclass

import onnx_ir as ir

_KEY = "onnxforge.unit_damage"


@dataclass(frozen=True)
class UnitDamage:
    """What the loss of the cheapest units of a group did to the model's answers, nothing else removed."""

    units: int
    """How many were taken out."""
    damage: float
    """KL divergence of the next token in nats, or for encoders 1 - the mean cosine of sentences."""


def leave_damage(value: ir.Value, found: UnitDamage) -> None:
    """Leave what was measured on the value that the units' matrix multiplies."""
    value.meta[_KEY] = found


def damage_of(value: ir.Value | None) -> UnitDamage | None:
    """What was measured, if it was."""
    found = value.meta.get(_KEY) if value is not None else None
    return found if isinstance(found, UnitDamage) else None
