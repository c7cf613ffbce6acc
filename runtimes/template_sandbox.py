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
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from onnxforge.runtimes.template_budget import (
    CHARACTERS_PER_STEP,
    MAX_OUTPUT,
    MAX_VALUE,
    charge,
    limited,
    refuse_growth,
    refuse_large_operands,
    weigh,
)

# fmt: off
_FILTERS = (
    "abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape",
    "filesizeformat", "first", "float", "forceescape", "format", "groupby", "indent", "int", "items", "join",
    "last", "length", "list", "lower", "map", "max", "min", "pprint", "reject", "rejectattr",
    "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string",
    "striptags", "sum", "title", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
    "wordwrap", "xmlattr",
)
# fmt: on
_CONSTANT_COST = frozenset(["count", "d", "default", "first", "last", "length"])
# fmt: off
_DEEP = frozenset([
    "e", "escape", "forceescape", "join", "pprint", "safe", "sort", "string", "sum", "tojson", "unique",
])
# fmt: on


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
        charge(1)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = method.__self__ if isinstance(method, BuiltinMethodType) else None
        name = getattr(__obj, "__name__", "")
        refuse_growth(str(name), owner, (*args, *kwargs.values()))
        result: object = super().call(__context, __obj, *args, **kwargs)
        if isinstance(result, range):
            charge(len(result))
        return limited(result)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        """``+ * ** %``, checked before they are computed."""
        charge(1)
        refuse_large_operands(operator, left, right)
        return limited(super().call_binop(context, operator, left, right))


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


def _weighed(value: object) -> object:
    charge(weigh(value) // CHARACTERS_PER_STEP)
    return value


def _counted(items: Iterable[object]) -> Iterable[object]:
    """The items, charging a step for each; sized things stay sized for loop.length and loop.last."""
    if isinstance(items, Undefined):
        return items
    if isinstance(items, list | tuple | dict | str | range):
        charge(len(items))
        return items
    return _charged(items)


def _charged(items: Iterable[object]) -> Iterator[object]:
    for item in items:
        charge(1)
        yield item


def _joined(parts: list[object]) -> str:
    if weigh(parts) > MAX_VALUE:
        raise SecurityError(f"the template joins a text longer than {MAX_VALUE}")
    return limited("".join([str(part) for part in parts]))


def _concatenated(pieces: Iterable[str]) -> str:
    taken, total = [], 0
    for piece in pieces:
        total += len(piece)
        if total > MAX_OUTPUT:
            raise SecurityError(f"the template writes more than {MAX_OUTPUT} characters")
        taken.append(piece)
    charge(total // CHARACTERS_PER_STEP)
    return "".join(taken)


def _guarded(name: str, function: Callable[..., object]) -> Callable[..., object]:
    """A filter that is charged for what it reads and limited in what it makes."""
    place = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def guarded(*args: object, **kwargs: object) -> object:
        value = args[place] if len(args) > place else None
        charge(1)
        if isinstance(value, Iterator):
            value = list(_charged(value))
            args = (*args[:place], value, *args[place + 1 :])
        if name in _DEEP:
            _weighed(value)
        elif name not in _CONSTANT_COST and isinstance(value, list | tuple | dict | range):
            charge(len(value))
        refuse_growth(name, value, (*args[place + 1 :], *kwargs.values()))
        return limited(function(*args, **kwargs))

    return guarded
