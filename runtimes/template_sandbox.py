"""A jinja environment for templates that strangers wrote: no escape, and no more work than a budget.

jinja's immutable sandbox stops templates from reaching into Python. It does not stop ``range(10**5)`` inside
``range(10**5)``, nor strings that double in a loop. Here every loop step, call and filter draws from one
budget per rendering, in proportion to what it reads and makes, and no text or list grows past a limit:

    {% for x in items %}     ->  {% for x in items|_counted %}      each step is charged
    a ~ b                    ->  [a, b]|_joined                     the length is checked before it is built
    a == b                   ->  a|_weighed == b|_weighed           nested lists are charged by their leaves
    'x' * n, 2 ** n, a + b   ->  call_binop                         checked before it is computed
"""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from types import BuiltinMethodType
from typing import TypeVar

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

STEPS = 100_000
MAX_VALUE = 1024 * 1024
"""Characters of one intermediate text, and items of one list."""
MAX_OUTPUT = 4 * 1024 * 1024
_CHARACTERS_PER_STEP = 1024
_MAX_INTEGER_BITS = 4096

# fmt: off
_FILTERS = (
    "abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first",
    "float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length",
    "list", "lower", "map", "max", "min", "pprint", "reject", "rejectattr", "replace", "reverse",
    "round", "safe", "select", "selectattr", "slice", "sort", "string", "striptags", "sum", "title",
    "trim", "truncate", "unique", "upper", "wordcount", "wordwrap",
)
# fmt: on
_CONSTANT_COST = frozenset(["count", "d", "default", "first", "last", "length"])
# fmt: off
_DEEP = frozenset([
    "e", "escape", "forceescape", "join", "pprint", "safe", "sort", "string", "sum", "tojson", "unique",
])
# fmt: on
_T = TypeVar("_T")
_left: ContextVar[list[int]] = ContextVar("template_steps_left")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """jinja's immutable sandbox with a budget; compile and render inside `budget()`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, extensions: Iterable[str | type[jinja2.ext.Extension]]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=list(extensions), finalize=_weighed, cache_size=0
        )
        for name in ("lipsum", "cycler", "joiner"):
            del self.globals[name]
        self.filters = {name: _guarded(name, self.filters[name]) for name in _FILTERS}
        self.filters |= {"_counted": _counted, "_joined": _joined, "_weighed": _weighed}
        self.concat = _concatenated  # type: ignore[method-assign]  # set blocks and macros join their pieces with it

    def add_filter(self, name: str, function: Callable[..., object]) -> None:
        """Offer one more filter, charged like the others."""
        self.filters[name] = _guarded(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: object, *args: object, **kwargs: object) -> object:  # noqa: N805
        """Every call of a template, of methods too."""
        _charge(1)
        owner = __obj.__self__ if isinstance(__obj, BuiltinMethodType) else None
        name = getattr(__obj, "__name__", "")
        _refuse_growth(str(name), owner, (*args, *kwargs.values()))
        result: object = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, range):
            _charge(len(result))
        return _limited(result)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """``+ * ** %``, checked before they are computed."""
        _charge(1)
        _refuse_large_operands(operator, left, right)
        return _limited(super().call_binop(context, operator, left, right))


class budget:  # noqa: N801  # reads as `with budget():`
    """One rendering's allowance of steps; also turns exhaustion into jinja2's SecurityError."""

    def __enter__(self) -> None:
        self._token = _left.set([STEPS])

    def __exit__(self, *_: object) -> None:
        _left.reset(self._token)


class _Meter(NodeTransformer):
    """Rewrites a parsed template so that its loops, joins and comparisons are charged."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.iter, nodes.Expr):
            node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _filtered(node.expr, "_weighed")
        for operand in node.ops:
            if isinstance(operand.expr, nodes.Expr):
                operand.expr = _filtered(operand.expr, "_weighed")
        return node


def _filtered(node: nodes.Expr, name: str) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _charge(steps: int) -> None:
    left = _left.get()
    left[0] -= steps
    if left[0] < 0:
        raise SecurityError(f"the template takes more than {STEPS} steps")


def _limited(value: _T) -> _T:
    """The value, if it is small enough to go on with."""
    if isinstance(value, str):
        _charge(len(value) // _CHARACTERS_PER_STEP)
    if isinstance(value, str | list | tuple | dict) and len(value) > MAX_VALUE:
        raise SecurityError(f"the template makes a value larger than {MAX_VALUE}")
    return value


def _weigh(value: object) -> int:
    """Characters that printing a value takes, at least; charges a step per item, however deeply nested."""
    total, pending = 0, [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            _charge(len(item))
            pending.extend(item.keys())
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            _charge(len(item))
            pending.extend(item)
    return total


def _weighed(value: object) -> object:
    _charge(_weigh(value) // _CHARACTERS_PER_STEP)
    return value


def _counted(items: Iterable[object]) -> Iterable[object]:
    """The items, charging a step for each; sized things stay sized for loop.length and loop.last."""
    if isinstance(items, Undefined):
        return items
    if isinstance(items, list | tuple | dict | str | range):
        _charge(len(items))
        return items
    return _charged(items)


def _charged(items: Iterable[object]) -> Iterator[object]:
    for item in items:
        _charge(1)
        yield item


def _joined(parts: list[object]) -> str:
    if _weigh(parts) > MAX_VALUE:
        raise SecurityError(f"the template joins a text longer than {MAX_VALUE}")
    return _limited("".join([str(part) for part in parts]))


def _concatenated(pieces: Iterable[str]) -> str:
    taken, total = [], 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_OUTPUT:
            raise SecurityError(f"the template writes more than {MAX_OUTPUT} characters")
        taken.append(piece)
    _charge(total // _CHARACTERS_PER_STEP)
    return "".join(taken)


def _guarded(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """A filter that is charged for what it reads and limited in what it makes."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: object, **kwargs: object) -> object:
        value = args[place] if len(args) > place else None
        _charge(1)
        if name in _DEEP:
            _weighed(value)
        elif name not in _CONSTANT_COST and isinstance(value, list | tuple | dict | range):
            _charge(len(value))
        _refuse_growth(name, value, (*args[place + 1 :], *kwargs.values()))
        return _limited(function(*args, **kwargs))

    return guarded


def _refuse_growth(name: str, value: object, options: tuple[object, ...]) -> None:
    """Refuse a call whose result would be too large, before it is made."""
    size = max(len(value), 1) if isinstance(value, str | list | tuple | dict) else 1
    bound = size
    for option in options:
        if isinstance(option, int) and isinstance(value, str | list | tuple):
            bound = max(bound, size * abs(option))
    if name == "replace" and isinstance(value, str) and len(options) >= 2:
        old, new = str(options[0]), str(options[1])
        bound = max(bound, size + (value.count(old) if old else size + 1) * len(new))
    if name == "join":
        separator, items = (value, options[0]) if isinstance(value, str) and options else (options[:1], value)
        count = len(items) if isinstance(items, list | tuple | dict) else 1
        bound = max(bound, _weigh(items) + _weigh(separator) * count)
    if name in ("format", "format_map") and isinstance(value, str) and _WIDE_FORMAT.search(value):
        raise SecurityError("the template formats with a variable or very large width")
    if bound > 16 * MAX_VALUE:
        raise SecurityError(f"the template calls {name!r} for a result that may exceed {16 * MAX_VALUE}")


def _refuse_large_operands(operator: str, left: object, right: object) -> None:
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
            _charge(len(left) // 64 + len(right) // 64)


_WIDE_FORMAT = re.compile(r"\d{5}|\*|\{[^{}]*\{")
