"""Decide what an attention mask means by evaluating it, not by recognising the nodes that build it.

The mask is computed at a handful of small shapes (a ragged prompt, a cached step, a cached block of tokens, a
cache with holes, and once beyond every constant that could be a window) and compared, on the rows of real
tokens, with the closed form::

    causal(window)   key <= query  and  key > query - window  and  the key is a token
    padding          the key is a token

with keys and queries counted in slots (past length plus index). Positions beyond ``2**22`` are not tried.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import readable
from onnxforge.passes.subgraph_probe import Bench, Probe, Sizes, TooLarge, Unprobeable

_FORBIDDEN = -9999.0
"""Added to a score, this leaves a probability of exactly zero in float32."""
_LARGEST_WINDOW = 2**22
_SWEEP = (600, 4000)
_MOST_NODES = 4096


@dataclass(frozen=True)
class Causal:
    """A token sees itself and what came before it, at most ``window`` slots including its own."""

    window: int | None
    padding: bool
    """Whether slots that attention_mask excludes are hidden."""


@dataclass(frozen=True)
class Padding:
    """A token sees every slot that attention_mask includes, before and after it."""


@dataclass(frozen=True)
class NoMask:
    """A token sees every slot."""


@dataclass(frozen=True)
class Unknown:
    """None of these, or not provable."""

    reason: str


MaskMeaning = Causal | Padding | NoMask | Unknown
Bias = Callable[[Probe], np.ndarray]
"""What the mask adds to the scores under a probe, broadcastable to [B, H, S, T]."""


def mask_meaning(bench: Bench, bias: Bias, roots: Iterable[ir.Value], *, cached: bool) -> MaskMeaning:
    """The meaning of the mask that ``bias`` computes from ``roots``.

    Args:
        bench: evaluators of the graph.
        bias: evaluates the mask under a probe.
        roots: the values in the graph from which it is computed; constants above them are candidate windows.
        cached: whether the graph has past inputs, so that queries may follow cached keys.
    """
    roots = tuple(roots)
    try:
        seen = [_Seen.at(bench, bias, sizes, mask) for sizes, mask in _shapes(cached)]
        beyond = [_Seen.at(bench, bias, sizes, None) for sizes in _long_shapes(bench, bias, roots, cached)]
    except _AddsNumbers as problem:
        return Unknown(str(problem))
    except Unprobeable as problem:
        return Unknown(f"the mask cannot be evaluated: {problem}")
    finally:
        bench.forget_large()
    every = [*seen, *beyond]
    meanings: list[MaskMeaning] = [
        NoMask(),
        Padding(),
        Causal(None, padding=True),
        Causal(None, padding=False),
    ]
    for window in sorted({item.widest() for item in every}):
        meanings += [Causal(window, padding=True), Causal(window, padding=False)]
    for meaning in meanings:
        if all(item.fits(meaning) for item in every):
            return meaning
    return Unknown("the mask is neither causal, nor causal within a window, nor plain padding")


class _AddsNumbers(Exception):
    pass


@dataclass(frozen=True)
class _Seen:
    """One evaluation: which keys each query may see."""

    allowed: np.ndarray
    """bool [B, H or 1, S, T]"""
    tokens: np.ndarray
    """bool [B, T]"""
    past: int

    @staticmethod
    def at(bench: Bench, bias: Bias, sizes: Sizes, mask: np.ndarray | None) -> "_Seen":
        probe = bench.probe(sizes, mask)
        added = bias(probe)
        if (
            added.ndim < 2
            or added.shape[-1] not in (1, sizes.total)
            or added.shape[-2] not in (1, sizes.sequence)
        ):
            raise Unprobeable(f"a mask of shape {added.shape} at {sizes}")
        tokens = probe.mask.astype(bool)
        rows = np.broadcast_to(added, (sizes.batch, *_heads(added), sizes.sequence, sizes.total))
        real = tokens[:, sizes.past :]
        of_tokens = rows.transpose(0, 2, 1, 3)[real]
        if np.isnan(of_tokens).any() or ((of_tokens != 0) & (of_tokens > _FORBIDDEN)).any():
            raise _AddsNumbers("the mask adds a bias to the scores, not only 0 or minus infinity")
        return _Seen(rows >= 0, tokens, sizes.past)

    def widest(self) -> int:
        """The most keys that the last query of the first row sees."""
        return int(self.allowed[0, :, -1].sum(-1).max())

    def fits(self, meaning: MaskMeaning) -> bool:
        """Whether ``meaning`` says the same for every query that is a token."""
        batch, _, length, total = self.allowed.shape
        query = np.arange(self.past, self.past + length)[:, None]
        key = np.arange(total)[None]
        meant = np.ones((length, total), bool)
        if isinstance(meaning, Causal):
            meant = key <= query
            if meaning.window is not None:
                meant &= key > query - meaning.window
        hidden = isinstance(meaning, Padding) or (isinstance(meaning, Causal) and meaning.padding)
        visible = self.tokens if hidden else np.ones((batch, total), bool)
        expected = meant[None, None] & visible[:, None, None]
        real = self.tokens[:, None, self.past :, None]
        return not ((self.allowed != expected) & real).any()


def _heads(added: np.ndarray) -> tuple[int]:
    return (added.shape[-3],) if added.ndim >= 3 else (1,)


def _shapes(cached: bool) -> list[tuple[Sizes, np.ndarray | None]]:
    ragged = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int64)
    shapes: list[tuple[Sizes, np.ndarray | None]] = [(Sizes(2, 7, 0), ragged)]
    if cached:
        holes = np.array([[1] * 7, [1, 1, 1, 1, 0, 0, 1]], np.int64)
        shapes += [(Sizes(2, 1, 6), holes), (Sizes(2, 3, 4), None)]
    return shapes


def _long_shapes(bench: Bench, bias: Bias, roots: tuple[ir.Value, ...], cached: bool) -> list[Sizes]:
    """Shapes beyond every number that might be a window, where the mask can be evaluated at all.

    A graph that fails at a length fails there for its users too (a table of 1024 positions cannot be asked
    for 1025), so a failure that is not about size ends the search.
    """
    if _same_for_all_queries(bench, roots, cached):
        return []
    numbers = _numbers(roots)
    found = []
    for length in sorted({*(number + 5 for number in numbers), *_SWEEP}):
        if not cached and length == _SWEEP[-1] and length - 5 not in numbers:
            continue
        sizes = Sizes(1, 2, length) if cached else Sizes(1, length, 0)
        if not cached and length > _SWEEP[-1] + 200:
            raise Unprobeable(f"a mask over {length} queries is too large to evaluate")
        try:
            bias(bench.probe(sizes))
        except TooLarge:
            if length - 5 in numbers:
                raise
            continue
        except Unprobeable:
            break
        found.append(sizes)
    return found


def _same_for_all_queries(bench: Bench, roots: tuple[ir.Value, ...], cached: bool) -> bool:
    probe = bench.probe(Sizes(2, 7, 6 if cached else 0))
    shapes = [probe.shape(root) for root in roots]
    return not cached and all(len(shape) < 2 or shape[-2] == 1 for shape in shapes)


def _numbers(roots: tuple[ir.Value, ...]) -> set[int]:
    """Whole numbers among the constants above ``roots``, except above what only shapes are read from."""
    pending, visited, numbers = list(roots), set[ir.Value](), set[int]()
    while pending and len(visited) < _MOST_NODES:
        value = pending.pop()
        if value in visited:
            continue
        visited.add(value)
        array = readable(value, 16)
        if array is not None and array.dtype.kind in "iuf":
            numbers |= {int(n) for n in array.reshape(-1) if 2 <= abs(n) <= _LARGEST_WINDOW and n == int(n)}
        node = value.producer()
        if node is not None and node.op_type not in ("Shape", "Size"):
            pending += [item for item in node.inputs if item is not None]
    return {abs(number) for number in numbers}
