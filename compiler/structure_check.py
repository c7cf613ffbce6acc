"""One rule about a graph's form, and the words in which rules say what they found."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

_SHOWN = 4
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, *HALVES)
_CACHE_SCALES = 12


@dataclass(frozen=True)
class StructureCheck:
    """One rule and what was found."""

    rule: str
    found: str
    """In words; for a rule that is broken, where."""
    held: bool
    required: bool
    """A broken rule that is required misses the budget; another one costs speed and is told."""


Rule = Callable[[tuple[ir.Node, ...]], StructureCheck]


def broken_promises(checks: Iterable[StructureCheck]) -> tuple[str, ...]:
    """What a compile fails for, in the words of its error."""
    return tuple(
        f"promised that {check.rule}, found {check.found}"
        for check in checks
        if check.required and not check.held
    )


def touches(node: ir.Node, *dtypes: ir.DataType) -> bool:
    """Whether it reads or makes one of these; a cache's scales are float32 whatever their attention is."""
    inputs = node.inputs[:_CACHE_SCALES] if node.op_type == "GroupQueryAttention" else node.inputs
    values = [*inputs, *(output for output in node.outputs if output.name)]
    return any(value is not None and value.dtype in dtypes for value in values)


def operator_name(node: ir.Node) -> str:
    """The operator, with its domain where that is not the main one."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def listed(found: Counter[str]) -> str:
    """The most frequent entries, and how many more there are."""
    shown = [f"{text} ({count}x)" if count > 1 else text for text, count in found.most_common(_SHOWN)]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f"; {more} more" if more > 0 else "")
