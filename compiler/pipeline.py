"""The text form of passes, both ways, and the edits that a command line makes to a list of them.

``quantize-weights{bits=8,block_size=32}`` is a name and the options that differ from their defaults. The
options are the fields of the pass, so their names and types are known without a table.
"""

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Union

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.nearest import nearest
from onnxforge.compiler.steps import step_class, step_names
from onnxforge.passes.base import GraphStep

Option = bool | int | float | str | None
_FORM = re.compile(r"(?P<name>[a-z0-9-]+)(?:\{(?P<options>[^{}]*)\})?")


def parse_pass(text: str) -> GraphStep:
    """The pass that ``text`` spells.

    Raises:
        RequestRefused: no such pass or option, or a value of the wrong type.
    """
    form = _FORM.fullmatch(text.strip())
    if form is None:
        raise RequestRefused(f"`{text}` is no pass: write `name` or `name{{option=value,option=value}}`.")
    options: dict[str, Option] = {}
    cls = _class_of(form["name"])
    for assignment in filter(None, (form["options"] or "").split(",")):
        name, _, value = assignment.partition("=")
        options[name.strip()] = _option(cls, name.strip(), value.strip())
    return _build(cls, options)


def parse(passes: Iterable[str]) -> tuple[GraphStep, ...]:
    """Every pass of a pipeline, in order."""
    return tuple(map(parse_pass, passes))


def edit(
    passes: Sequence[GraphStep], *, settings: Sequence[str], without: Sequence[str]
) -> tuple[GraphStep, ...]:
    """The passes with ``pass.option=value`` settings applied and the ones named in ``without`` left out.

    Raises:
        RequestRefused: a name that is not in this pipeline, or a value that does not fit.
    """
    names = [p.pass_name() for p in passes]
    for name in without:
        _must_be_known(name, names, "pass", " in this target")
    edited = [p for p in passes if p.pass_name() not in without]
    for setting in settings:
        target, separator, value = setting.partition("=")
        name, dot, option = target.partition(".")
        if not separator or not dot:
            raise RequestRefused(f"`--set {setting}` is no setting: write `--set pass.option=value`.")
        _must_be_known(name, [p.pass_name() for p in edited], "pass", " in this target")
        edited = [_with_option(p, option, value) if p.pass_name() == name else p for p in edited]
    return tuple(edited)


def _must_be_known(name: str, known: Sequence[str], what: str, where: str) -> None:
    if name not in known:
        listed = ", ".join(dict.fromkeys(known)) or "none"
        raise RequestRefused(f"There is no {what} `{name}`{where}{nearest(name, known)} Known: {listed}.")


def _class_of(name: str) -> type[GraphStep]:
    _must_be_known(name, step_names(), "pass", "")
    return step_class(name)


def _with_option(graph_pass: GraphStep, option: str, value: str) -> GraphStep:
    cls = type(graph_pass)
    return _build(cls, {**graph_pass.options(), option: _option(cls, option, value)})


def _build(cls: type[GraphStep], options: dict[str, Option]) -> GraphStep:
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise RequestRefused(f"The options of pass `{cls.pass_name()}` do not fit: {error}") from error


def _option(cls: type[GraphStep], name: str, value: str) -> Option:
    hints = typing.get_type_hints(cls)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    _must_be_known(name, fields, "option", f" of pass `{cls.pass_name()}`")
    kinds = _alternatives(hints[name])
    for kind in kinds:
        try:
            return _READERS[kind](value)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join("none" if kind is types.NoneType else kind.__name__ for kind in kinds)
    raise RequestRefused(f"Option `{name}` of pass `{cls.pass_name()}` wants {wanted}, not `{value}`.")


def _alternatives(hint: object) -> tuple[type, ...]:
    """The plain types of an annotation, narrowest first: ``int | None`` gives ``(NoneType, int)``."""
    origin = typing.get_origin(hint)
    parts = typing.get_args(hint) if origin in (Union, types.UnionType) else (hint,)
    flat = {type(arg) for p in parts for arg in typing.get_args(p)} | {
        p for p in parts if isinstance(p, type)
    }
    return tuple(kind for kind in _READERS if any(issubclass(kind, f) and (kind is f) for f in flat)) or (
        str,
    )


def _read_bool(value: str) -> bool:
    return {"true": True, "false": False}[value.lower()]


def _read_none(value: str) -> None:
    return {"none": None}[value.lower()]


_READERS: dict[type, typing.Callable[[str], Option]] = {
    types.NoneType: _read_none,
    bool: _read_bool,
    int: int,
    float: float,
    str: str,
}
