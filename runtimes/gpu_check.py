"""One thing that a GPU session needs: whether it is there, what was found, what to do."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """The answer to one question about this machine or installation."""

    name: str
    held: bool | None
    """None where it was not asked or cannot be told."""
    found: str
    remedy: str = ""
    """What to do about it; where it held, what could go wrong with it."""


def first_failed(checks: Sequence[Check]) -> Check | None:
    """The one to repair first: those behind it may hold once it does."""
    return next((check for check in checks if check.held is False), None)
