"""One rendering's budget of steps, and the sizes that no value of a template may exceed."""

import re
from contextvars import ContextVar
from typing import TypeVar

from jinja2.exceptions import SecurityError

STEPS = 100_000
MAX_VALUE = 1024 * 1024
"""Characters of one intermediate text, and items of one list."""
MAX_OUTPUT = 4 * 1024 * 1024
CHARACTERS_PER_STEP = 1024
_MAX_INTEGER_BITS = 4096

# Filters and methods that make more text, or more items, the larger the number they are given; tojson's
# indent counts for every line of a nesting that is not known before.
_GROWS_BY_NUMBER = {
    **dict.fromkeys(("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "zfill"), 1),
    "tojson": 16 * MAX_VALUE // 64,
}
_WIDE_FORMAT = re.compile(r"\d{5}|\*|\{[^{}]*\{")
_T = TypeVar("_T")
_left: ContextVar[list[int]] = ContextVar("template_steps_left")


class budget:  # noqa: N801  # reads as `with budget():`
    """One rendering's allowance of steps, in this thread; exhausting it raises jinja2's SecurityError."""

    def __enter__(self) -> None:
        self._token = _left.set([STEPS])

    def __exit__(self, *_: object) -> None:
        _left.reset(self._token)


def charge(steps: int) -> None:
    """Take steps from the budget in force. Raises SecurityError when it is exhausted."""
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise SecurityError(f"the template takes more than {STEPS} steps")


def limited(value: _T) -> _T:
    """The value, if it is small enough to go on with."""
    if isinstance(value, str):
        charge(len(value) // CHARACTERS_PER_STEP)
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_VALUE:
        raise SecurityError(f"the template makes a value larger than {MAX_VALUE}")
    return value


def weigh(value: object) -> int:
    """Characters that printing a value takes, at least; charges a step per item, however deeply nested."""
    total, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            charge(len(item))
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            charge(len(item))
            pending.extend(item)
    return total


def refuse_growth(name: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse a call whose result would be too large, before it is made."""
    size = max(len(value), 1) if isinstance(value, str | list | tuple | dict | range) else 1
    bound = size
    for option in options:
        if isinstance(option, int) and name in _GROWS_BY_NUMBER:
            bound = max(bound, _GROWS_BY_NUMBER[name] * size * abs(option))
    if name == "replace" and isinstance(value, str) and len(options) >= 2:
        old, new = str(options[0]), str(options[1])
        bound = max(bound, size + (value.count(old) if old else size + 1) * len(new))
    if name == "join":
        separator, items = (value, options[0]) if isinstance(value, str) and options else (options[:1], value)
        count = len(items) if isinstance(items, list | tuple | dict | range | str) else 1
        bound = max(bound, weigh(items) + weigh(separator) * count)
    if name in ("format", "format_map") and isinstance(value, str) and _WIDE_FORMAT.search(value):
        raise SecurityError("the template formats with a variable or very large width")
    if bound > 16 * MAX_VALUE:
        raise SecurityError(f"the template calls {name!r} for a result that may exceed {16 * MAX_VALUE}")


def refuse_large_operands(operator: str, left: object, right: object) -> None:
    """Refuse ``+ * ** %`` when the result would be too large, before it is computed."""
    if operator == "%" and isinstance(left, str) and _WIDE_FORMAT.search(left):
        raise SecurityError("the template formats with a variable or very large width")
    if operator == "*":
        for many, count in ((left, right), (right, left)):
            if (
                isinstance(many, str | list | tuple)
                and isinstance(count, int)
                and len(many) * count > MAX_VALUE
            ):
                raise SecurityError(f"the template makes a value larger than {MAX_VALUE}")
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 1) if operator == "**" else 1) + right.bit_length()
        if bits > _MAX_INTEGER_BITS:
            raise SecurityError("the template computes with a very large number")
    if operator == "+" and isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        if len(left) + len(right) > MAX_VALUE:
            raise SecurityError(f"the template makes a value larger than {MAX_VALUE}")
        if not isinstance(left, str):
            charge(len(left) // 64 + len(right) // 64)
