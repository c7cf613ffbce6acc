"""How far a student's answers are from its teacher's on held-out text: what decides whether it has gained."""

import onnx_ir as ir
import torch

from onnxforge.compiler.distillation_losses import logits_loss, states_loss
from onnxforge.passes.base import PassRefused

_ANSWERS = ("logits", "last_hidden_state")


def answer_of(model: ir.Model) -> ir.Value:
    """The output that is compared.

    Raises:
        PassRefused: the graph answers neither logits nor hidden states.
    """
    by_name = {output.name: output for output in model.graph.outputs}
    found = next((by_name[name] for name in _ANSWERS if name in by_name), None)
    if found is None:
        raise PassRefused(f"Distillation: the graph answers none of {', '.join(_ANSWERS)}.")
    return found


def answer_loss(
    name: str, student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Scalar: of logits the KL divergence, nats per token; of hidden states their distance.

    ``name`` is the output's. ``student`` and ``teacher`` [B, S, V], [B, C] or [B, S, H]; ``mask`` [B, S].
    """
    if name == "logits":
        return logits_loss(student, teacher, mask.bool(), temperature)
    return states_loss(student, teacher, mask)
