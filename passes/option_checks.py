"""What many steps ask of their options: a check refuses with the step, what was given and what it takes."""

import re
from collections.abc import Iterable

from onnxforge.passes.base import PassRefused


def check_share(step: str, name: str, value: float) -> None:
    """Some of it, and not all. ``step`` is the text form of the step.

    Raises:
        PassRefused: ``value`` is not between 0 and 1.
    """
    if not 0 < value < 1:
        raise PassRefused(f"{step}: {name} is {value}; it must be between 0 and 1")


def check_choice(step: str, name: str, value: str, known: Iterable[str]) -> None:
    """One word of several.

    Raises:
        PassRefused: ``value`` is none of ``known``.
    """
    if value not in (words := tuple(known)):
        raise PassRefused(f"{step}: {name} is {value!r}; use one of {', '.join(words)}")


def check_pattern(step: str, name: str, pattern: str) -> None:
    """A regular expression.

    Raises:
        PassRefused: ``pattern`` cannot be read as one.
    """
    try:
        re.compile(pattern)
    except re.error as problem:
        raise PassRefused(f"{step}: {name} is no regular expression ({problem})") from problem
