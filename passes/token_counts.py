"""How often a corpus uses each token, and which tokens a tokenizer cannot do without: rides on the model.

A pass knows no tokenizer. Whoever does leaves here what `prune-vocabulary` chooses by; never saved.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

_COUNTS, _KEPT = "onnxforge.token_counts", "onnxforge.kept_tokens"


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """A vocabulary as a corpus uses it. Arrays are indexed by token id, 0 to the highest."""

    counts: np.ndarray
    """int64 [V]: how often the corpus holds each token."""
    exists: np.ndarray
    """bool [V]: whether the tokenizer has a token of this id."""
    needed: np.ndarray
    """bool [V]: tokens without which some text could not be written, and special ones."""
    parts: Mapping[int, tuple[int, ...]]
    """The tokens that each merged token is put together from: it is never written without them."""

    def closure(self, tokens: Iterable[int]) -> set[int]:
        """``tokens``, and all that they are put together from."""
        found: set[int] = set()
        pending = list(tokens)
        while pending:
            token = pending.pop()
            if token not in found:
                found.add(token)
                pending.extend(self.parts.get(token, ()))
        return found


def leave_counts(model: ir.Model, counts: TokenCounts) -> None:
    """Leave on ``model`` how a corpus uses its vocabulary."""
    model.meta[_COUNTS] = counts


def counts_of(model: ir.Model) -> TokenCounts | None:
    """How a corpus uses the vocabulary of ``model``, if it was counted."""
    found = model.meta.get(_COUNTS)
    return found if isinstance(found, TokenCounts) else None


def leave_kept(model: ir.Model, kept: np.ndarray) -> None:
    """Leave on ``model`` that its token i is what was token ``kept[i]`` of the vocabulary it has now.

    Pruned twice, the two choices are followed back to the first vocabulary.
    """
    before = kept_tokens(model)
    model.meta[_KEPT] = kept if before is None else before[kept]


def kept_tokens(model: ir.Model) -> np.ndarray | None:
    """int64 [n], ascending: of each token of ``model`` the id that its source has for it. None: the same."""
    found = model.meta.get(_KEPT)
    return found if isinstance(found, np.ndarray) else None
