"""Targets as text: the user's own TOML files, and the mapping form that recipes use.

.. code-block:: toml

    name = "cpu-int8-strict"
    extends = "cpu-int8"                       # whatever is not said here is taken from there
    passes = ["canonicalize", "cleanup"]
    expects.decoder = ["fuse-attention:GroupQueryAttention"]
    budget = ["perplexity_ratio <= 1.01"]
    session = { "session.intra_op.allow_spinning" = "0" }
    calibration = "chats.jsonl"                # beside this file; as `compile --calibration` takes it
    speculation = "off"                        # or "auto", or a number; as `compile --speculation` takes it
    draft = "prune-layers=0.6"                 # a draft model in the artifact; as `compile --draft` takes it
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.nearest import nearest
from onnxforge.compiler.proof_types import METRICS
from onnxforge.compiler.speculation_option import as_text, draft_tokens
from onnxforge.compiler.targets import TARGETS, Bound, BudgetLine, Expectation, Target

Plain: TypeAlias = "str | int | float | bool | Sequence[Plain] | Mapping[str, Plain] | None"

_KEYS = (
    "name", "summary", "extends", "passes", "expects", "provider", "session", "budget", "calibration",
    "speculation", "draft", "refuses",
)  # fmt: skip
_KINDS = ("decoder", "encoder")


def find_target(name: str) -> Target:
    """The built-in target called ``name``, or the one in the TOML file at that path.

    Raises:
        RequestRefused: no such target, or a file that does not say what a target is.
    """
    if name.endswith(".toml"):
        return load_target(Path(name))
    found = next((target for target in TARGETS if target.name == name), None)
    if found is None:
        known = [target.name for target in TARGETS]
        raise RequestRefused(
            f"There is no target `{name}`{nearest(name, known)} Known: {', '.join(known)}, "
            "or the path of a .toml file."
        )
    return found


def load_target(path: Path) -> Target:
    """The target that the TOML file at ``path`` describes."""
    try:
        raw: Mapping[str, Plain] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestRefused(f"The target file {path} cannot be read: {error}.") from error
    target = target_from(raw, str(path))
    beside = path.parent / (target.calibration or "")
    return replace(target, calibration=str(beside)) if beside.is_file() else target


def to_mapping(target: Target) -> dict[str, Plain]:
    """``target`` as plain values; :func:`target_from` gives it back."""
    return {
        "name": target.name,
        "summary": target.summary,
        "passes": list(target.passes),
        "expects": {kind: [e.text() for e in expected] for kind, expected in target.expects.items()},
        "provider": target.provider,
        "session": dict(target.session),
        "budget": [line.text() for line in target.budget],
        "calibration": target.calibration,
        "speculation": as_text(target.speculation),
        "draft": target.draft,
        "refuses": dict(target.refuses),
    }


def target_from(raw: Mapping[str, Plain], where: str) -> Target:
    """The target that ``raw`` describes. ``where`` names its origin in messages."""
    for key in raw:
        if key not in _KEYS:
            raise RequestRefused(
                f"{where}: a target has no `{key}`{nearest(key, _KEYS)} Known: {', '.join(_KEYS)}."
            )
    base = find_target(_text(raw["extends"], "extends", where)) if "extends" in raw else Target("", "", ())
    changes = {key: read(raw[key], key, where) for key, read in _READERS.items() if key in raw}
    target = replace(base, **changes)  # type: ignore[arg-type]  # each reader gives its field's type
    if not raw.get("name") or not target.passes:
        raise RequestRefused(f"{where}: a target needs a `name`, and `passes` or a target that it `extends`.")
    return target


def budget_line(text: str, where: str) -> BudgetLine:
    """``perplexity_ratio <= 1.03`` as a record."""
    for bound in Bound:
        metric, found, limit = text.partition(bound.value)
        if not found:
            continue
        name = metric.strip()
        if name not in METRICS:
            raise RequestRefused(
                f"{where}: nothing measures `{name}`{nearest(name, METRICS)} Known: {', '.join(METRICS)}."
            )
        try:
            return BudgetLine(name, bound, float(limit))
        except ValueError:
            break
    raise RequestRefused(
        f"{where}: `{text}` is no budget line: write `metric <= number` or `metric >= number`."
    )


def _text(value: Plain, key: str, where: str) -> str:
    if not isinstance(value, str):
        raise RequestRefused(f"{where}: `{key}` is to be text, not {value!r}.")
    return value


def _texts(value: Plain, key: str, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RequestRefused(f"{where}: `{key}` is to be a list of texts, not {value!r}.")
    return tuple(_text(item, key, where) for item in value)


def _table(value: Plain, key: str, where: str) -> Mapping[str, Plain]:
    if not isinstance(value, Mapping):
        raise RequestRefused(f"{where}: `{key}` is to be a table, not {value!r}.")
    return value


def _session(value: Plain, key: str, where: str) -> dict[str, str]:
    return {name: _text(entry, f"{key}.{name}", where) for name, entry in _table(value, key, where).items()}


def _refuses(value: Plain, key: str, where: str) -> dict[str, str]:
    found = _session(value, key, where)
    for kind in found:
        _must_be_kind(kind, key, where)
    return found


def _must_be_kind(kind: str, key: str, where: str) -> None:
    if kind not in _KINDS:
        raise RequestRefused(f"{where}: `{key}.{kind}` is about no kind of model; write decoder or encoder.")


def _budget(value: Plain, key: str, where: str) -> tuple[BudgetLine, ...]:
    return tuple(budget_line(line, where) for line in _texts(value, key, where))


def _optional(value: Plain, key: str, where: str) -> str | None:
    return None if value is None else _text(value, key, where)


def _speculation(value: Plain, key: str, where: str) -> int | None:
    if not isinstance(value, str | int):
        raise RequestRefused(f"{where}: `{key}` is to be auto, off or a number, not {value!r}.")
    return draft_tokens(value, f"{where}: `{key}`")


def _expects(value: Plain, key: str, where: str) -> dict[str, tuple[Expectation, ...]]:
    expects = {}
    for kind, texts in _table(value, key, where).items():
        _must_be_kind(kind, key, where)
        expects[kind] = tuple(_expectation(text, where) for text in _texts(texts, f"{key}.{kind}", where))
    return expects


def _expectation(text: str, where: str) -> Expectation:
    made_by, colon, op_type = text.partition(":")
    if not colon or not made_by or not op_type:
        raise RequestRefused(f"{where}: `{text}` is no expectation: write `pass-name:OperatorType`.")
    return Expectation(op_type, made_by)


_READERS = {
    "name": _text,
    "summary": _text,
    "passes": _texts,
    "expects": _expects,
    "provider": _text,
    "session": _session,
    "budget": _budget,
    "calibration": _optional,
    "speculation": _speculation,
    "draft": _optional,
    "refuses": _refuses,
}
