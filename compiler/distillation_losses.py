"""How far a student is from its teacher, in the middle and at the end."""

from typing import TypeAlias

import torch
from torch.nn import functional

from onnxforge.compiler.pruning_losses import pooled

Answers: TypeAlias = torch.Tensor
"""Logits [B, S, V] or [B, C], or hidden states [B, S, H]."""


def answer_loss(
    name: str, student: Answers, teacher: Answers, mask: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Scalar: of logits the KL divergence, nats per token; of hidden states their distance.

    ``name`` is the output's; ``mask`` int64 [B, S].
    """
    if name == "logits":
        return logits_loss(student, teacher, mask.bool(), temperature)
    return states_loss(student, teacher, mask)


def stream_error(student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Scalar: the mean over real tokens of the squared error, each relative to its token's own square.

    ``student`` and ``teacher`` [B, S, H]. A norm reads the stream, so that what counts is relative; and the
    first token's states are a thousand times the others' in many decoders, and would be all that is learned.
    """
    error = (student - teacher).square().sum(dim=-1)
    relative = error / teacher.square().sum(dim=-1).clamp(min=1e-12)
    return relative[real].mean()


def logits_loss(
    student: Answers, teacher: Answers, real: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Scalar: ``T^2 KL(teacher || student)`` of softened logits, nats per real token (Hinton et al. 2015)."""
    if student.dim() == 3:
        student, teacher = student[real], teacher[real]
    mine = torch.log_softmax(student / temperature, dim=-1)
    theirs = torch.log_softmax(teacher / temperature, dim=-1)
    return temperature**2 * functional.kl_div(mine, theirs, reduction="batchmean", log_target=True)


def states_loss(student: Answers, teacher: Answers, mask: torch.Tensor) -> torch.Tensor:
    """Scalar: the relative error of the tokens' states plus the cosine distance of the pooled sentences."""
    apart = 1 - (pooled(student, mask) * pooled(teacher, mask)).sum(dim=-1)
    return stream_error(student, teacher, mask.bool()) + apart.mean()
