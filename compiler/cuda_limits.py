"""Where a CUDA kernel is registered for a node and refuses it all the same: attributes and shapes.

The limits are data (``cuda_limits.toml``): what each is about, what becomes of a node beyond it, what to do.
Whether a node is beyond one is a rule of the same name in ``cuda_limit_conditions.py``.
``bench/cuda_limits.py`` holds every one against onnxruntime-gpu 1.31.1 itself.
"""

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler.cuda_limit_conditions import CONDITIONS
from onnxforge.compiler.structure_check import operator_name


class Outcome(StrEnum):
    """What becomes of a node beyond a limit."""

    CPU = "cpu"
    OPEN = "open"
    RUN = "run"
    CUDNN = "cudnn"

    @property
    def words(self) -> str:
        """For a report."""
        return _WORDS[self]


_WORDS = {
    Outcome.CPU: "it runs on the CPU",
    Outcome.OPEN: "the session does not open",
    Outcome.RUN: "it fails when it runs",
    Outcome.CUDNN: "it fails when it runs where cuDNN is not installed",
}


@dataclass(frozen=True)
class Limit:
    """One row of the table."""

    name: str
    operators: tuple[str, ...]
    outcome: Outcome
    rule: str
    """What holds for every node within it."""
    advice: str
    said: tuple[str, ...]
    """Parts of what ONNX Runtime answers, one for each of ``breaks``, or one for all."""
    source: str
    breaks: tuple[str, ...]
    """Graphs of one node, as ONNX text without a header."""
    holds: tuple[str, ...]


@dataclass(frozen=True)
class BrokenLimit:
    """A limit that a node is beyond, and what was found there."""

    limit: Limit
    found: str


def broken_limits(node: ir.Node) -> Iterator[BrokenLimit]:
    """Every limit that ``node`` is beyond, as far as its shapes are known."""
    for limit in _by_operator().get(operator_name(node), ()):
        if found := CONDITIONS[limit.name](node):
            yield BrokenLimit(limit, found)


def is_left_to_cpu(node: ir.Node) -> bool:
    """Whether the provider gives the node away for its attributes."""
    return any(broken.limit.outcome is Outcome.CPU for broken in broken_limits(node))


@cache
def limits() -> tuple[Limit, ...]:
    """The table."""
    rows = tomllib.loads(Path(__file__).with_name("cuda_limits.toml").read_text(encoding="utf-8"))["limit"]
    return tuple(
        Limit(
            name=row["name"],
            operators=tuple(row["operators"]),
            outcome=Outcome(row["outcome"]),
            rule=row["rule"],
            advice=row["advice"],
            said=(row["said"],) if isinstance(row["said"], str) else tuple(row["said"]),
            source=row["source"],
            breaks=tuple(row["breaks"]),
            holds=tuple(row["holds"]),
        )
        for row in rows
    )


@cache
def _by_operator() -> Mapping[str, tuple[Limit, ...]]:
    found: dict[str, list[Limit]] = defaultdict(list)
    for limit in limits():
        for operator in limit.operators:
            found[operator].append(limit)
    return {operator: tuple(rows) for operator, rows in found.items()}
