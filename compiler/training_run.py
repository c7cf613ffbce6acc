"""One bounded training: AdamW under a clock, the state that is best on held-out text, never a worse one."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol

import torch

from onnxforge.compiler.distillation_text import TextBatch

_WARM_UP = 0.05
"""Share of the time in which the learning rate rises."""
_LAST = 0.02
"""Of the learning rate, at the end."""
_LARGEST_GRADIENT = 1.0
_LOOKS_PAY = 4
"""Between two looks at held-out text lies at least so many times what a look takes."""


class Objective(Protocol):
    """What is learned, one batch of text at a time."""

    def __call__(self, batch: TextBatch) -> torch.Tensor:
        """The loss, scalar, with gradients where they are enabled."""
        ...


@dataclass
class Clock:
    """Seconds that a training may take, counted over interruptions."""

    seconds: float
    spent: float = 0.0
    """Before this clock was made."""
    _started: float = field(default_factory=lambda: monotonic())

    def elapsed(self) -> float:
        """Seconds so far."""
        return self.spent + monotonic() - self._started

    def left(self) -> float:
        """Seconds that remain; 0 when the time is up."""
        return max(self.seconds - self.elapsed(), 0.0)

    def share(self) -> float:
        """0 at the start, 1 when the time is up."""
        return min(self.elapsed() / self.seconds, 1.0) if self.seconds > 0 else 1.0


@dataclass(frozen=True)
class Outcome:
    """What a training came to, on held-out text."""

    before: float
    after: float
    steps: int


def train(
    parameters: Sequence[torch.nn.Parameter],
    objective: Objective,
    learned: Sequence[TextBatch],
    held_out: Sequence[TextBatch],
    *,
    clock: Clock,
    learning_rate: float,
    looks: int,
    seed: int,
    on_look: Callable[[float, bool], None] = lambda _loss, _better: None,
) -> Outcome:
    """Train ``parameters`` until the clock is up; they end as they were at the best of about ``looks`` at the
    held-out text (the last of them when the time is up), and that is the start where nothing was gained.

    The learning rate warms up over a twentieth of the time and falls along a cosine (Loshchilov & Hutter
    2017, 1608.03983). ``on_look`` hears every held-out loss, that of the start first, and whether it is
    better than all before.
    """
    begun = clock.elapsed()
    first = best = held_out_loss(objective, held_out)
    on_look(first, False)
    cost = clock.elapsed() - begun
    pause = max(clock.seconds / looks, _LOOKS_PAY * cost)
    kept = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    order, rng = list(range(len(learned))), torch.Generator().manual_seed(seed)
    steps, place, due, looked = 0, len(order), clock.elapsed() + pause, True
    while clock.left() > cost or not looked:
        if clock.left() <= cost or clock.elapsed() >= due:
            due, looked = clock.elapsed() + pause, True
            found = held_out_loss(objective, held_out)
            better = found < best
            if better:
                best, kept = found, [parameter.detach().clone() for parameter in parameters]
            on_look(found, better)
            continue
        if place == len(order):
            order, place = torch.randperm(len(learned), generator=rng).tolist(), 0
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate(clock.share())
        _step(optimizer, parameters, objective(learned[order[place]]))
        steps, place, looked = steps + 1, place + 1, False
    with torch.no_grad():
        for parameter, tensor in zip(parameters, kept, strict=True):
            parameter.copy_(tensor)
    return Outcome(first, best, steps)


def held_out_loss(objective: Objective, batches: Sequence[TextBatch]) -> float:
    """The mean loss over ``batches``."""
    with torch.no_grad():
        return sum(float(objective(batch)) for batch in batches) / len(batches)


def _step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], loss: torch.Tensor
) -> None:
    """One update; a loss that is not finite is no reason to change anything."""
    optimizer.zero_grad(set_to_none=True)
    if not bool(torch.isfinite(loss)):
        return
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT)
    optimizer.step()


def _rate(share: float) -> float:
    """Of the learning rate, when ``share`` of the time is over."""
    if share < _WARM_UP:
        return (share + 1e-3) / (_WARM_UP + 1e-3)
    falling = (share - _WARM_UP) / (1 - _WARM_UP)
    return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * falling))
