"""What a step that runs for minutes says while it runs, to whoever shows it.

Steps hold no state and know no terminal, so they speak as they do to :mod:`onnxforge.passes.notes`: outside
:func:`heard_by`, what is said goes nowhere.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]

_listener: ContextVar[Listener | None] = ContextVar("onnxforge_step_progress", default=None)


def say(detail: str) -> None:
    """Tell how far the running step is: ``layer 4 of 30, 2.1 of 10 minutes``. Cheap; call it often."""
    listener = _listener.get()
    if listener is not None:
        listener(detail)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """Let ``listener`` hear the steps that run inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
