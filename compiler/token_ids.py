"""Configurations that name token ids: which they name, and the same with other numbers."""

import re
from collections.abc import Callable, Mapping

from onnxforge.models.source import Json

_ONE_OR_MORE = re.compile(r"(^|.*_)token_ids?$")
"""``eos_token_id``, ``decoder_start_token_id``, ``image_token_id`` ...: a number or a list of numbers."""
_OPTIONAL = ("suppress_tokens", "begin_suppress_tokens")
"""Lists of tokens never to be written: one that is gone need not be named."""
_SEQUENCES = ("bad_words_ids",)
"""Lists of such lists."""
_WANTED_SEQUENCES = ("force_words_ids",)
_PLACED = ("forced_decoder_ids",)
"""``[[place, id], ...]``."""
_SIZES = ("vocab_size", "vocab_size_per_layer_input")


def named_ids(config: Mapping[str, Json]) -> set[int]:
    """Ids that ``config`` cannot do without."""
    found: set[int] = set()

    def seen(number: int) -> int | None:
        found.add(number)
        return number

    _mapped(config, seen, optional=lambda number: number, size=lambda size: size)
    return found


def renumbered(config: Mapping[str, Json], new: Mapping[int, int], old_size: int) -> dict[str, Json]:
    """``config`` with every token id as ``new`` has it, and the vocabulary's size.

    Numbers outside the old vocabulary (-1, -100) never named a token and stay.
    """

    def moved(number: int) -> int | None:
        return new.get(number) if 0 <= number < old_size else number

    def resized(size: int) -> int:
        return len(new) if size == old_size else size

    return _mapped(config, moved, optional=moved, size=resized)


def _mapped(
    config: Mapping[str, Json],
    of: Callable[[int], int | None],
    *,
    optional: Callable[[int], int | None],
    size: Callable[[int], int],
) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            result[key] = _mapped(value, of, optional=optional, size=size)
        elif _ONE_OR_MORE.match(key):
            result[key] = _each(value, of)
        elif key in _OPTIONAL:
            result[key] = _each(value, optional)
        elif key in (*_SEQUENCES, *_WANTED_SEQUENCES) and isinstance(value, list):
            wanted = of if key in _WANTED_SEQUENCES else optional
            result[key] = [item for item in (_whole(item, wanted) for item in value) if item is not None]
        elif key in _PLACED and isinstance(value, list):
            result[key] = [_placed(item, of) for item in value]
        elif key in _SIZES and isinstance(value, int):
            result[key] = size(value)
        else:
            result[key] = value
    return result


def _each(value: Json, of: Callable[[int], int | None]) -> Json:
    """A number, or a list without those that are gone."""
    if isinstance(value, list):
        moved = [of(item) if _is_id(item) else item for item in value]  # type: ignore[arg-type]
        return [item for item in moved if item is not None]
    return of(value) if _is_id(value) else value  # type: ignore[arg-type]


def _whole(value: Json, of: Callable[[int], int | None]) -> Json:
    """A list, or None where one of its numbers is gone (for nested lists: any of them)."""
    if not isinstance(value, list):
        return _each(value, of)
    moved = [_whole(item, of) for item in value]
    return None if any(item is None for item in moved) else moved


def _placed(value: Json, of: Callable[[int], int | None]) -> Json:
    if isinstance(value, list) and len(value) == 2:
        return [value[0], _each(value[1], of)]
    return value


def _is_id(value: Json) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
