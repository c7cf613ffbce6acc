"""Losses without labels: what a decoder says next, and in which direction an encoder's answer can move."""

import torch
from torch.nn import functional


def next_token_loss(logits: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """float32 [B]: the mean negative log-likelihood, nats per token, of each row.

    ``logits`` [B, S, V]; ``ids`` and ``mask`` int64 [B, S]. Of a padded row the real tokens count.
    """
    said = logits[:, :-1].transpose(1, 2)
    losses = functional.cross_entropy(said, ids[:, 1:], reduction="none")
    real = (mask[:, 1:] * mask[:, :-1]).to(losses.dtype)
    return (losses * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[B, H]: the mean of a sentence's states [B, S, H] over its real tokens, of length 1."""
    weights = mask.to(states.dtype).unsqueeze(-1)
    mean = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
    return functional.normalize(mean, dim=-1)


def random_direction_loss(states: torch.Tensor, mask: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """[B]: the pooled sentence [B, H], of length 1, along a direction r drawn anew, of length sqrt(H).

    The squared distance of an answer to itself has no slope at the unpruned point; its curvature is J^T J,
    with J the answer's derivative. This loss has the slope J^T r, and over draws of r the mean of the squared
    slope is the diagonal of J^T J: first-order scores of it are those of the distance.
    """
    answers = pooled(states, mask)
    return (answers * torch.randn(answers.shape, generator=rng)).sum(dim=-1)


def own_label_loss(logits: torch.Tensor, mask: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """[B]: the negative log-likelihood of labels drawn from the model's own answer, nats.

    ``logits`` [B, C] of sentences, or [B, S, C] of tokens (then the mean over real ones). Drawn labels
    make the squared slope the Fisher information, which the most likely label would not (Kunstner et al.
    2019, 1905.12558).
    """
    spoken = torch.log_softmax(logits, dim=-1)
    drawn = torch.multinomial(spoken.detach().exp().flatten(0, -2), 1, generator=rng)
    losses = -spoken.gather(-1, drawn.reshape(*spoken.shape[:-1], 1)).squeeze(-1)
    if losses.dim() == 1:
        return losses
    real = mask.to(losses.dtype)
    return (losses * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
