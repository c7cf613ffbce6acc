"""An artifact with fewer tokens than its source, and the source's graph made to answer in its ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import EvaluationError
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.runtimes.strict_json import read_optional_json


@dataclass(frozen=True, eq=False)
class TokenMap:
    """Which tokens of a source an artifact has."""

    kept: np.ndarray
    """int64 [n]: of each token of the artifact, its id in the source."""
    size: int
    """Tokens of the source."""

    def old(self, ids: np.ndarray) -> np.ndarray:
        """The source's ids for the artifact's."""
        found: np.ndarray = self.kept[ids]
        return found

    def of_kept(self, logits: np.ndarray) -> np.ndarray:
        """The source's logits [..., V] of the artifact's tokens, [..., n]."""
        found: np.ndarray = logits[..., self.kept]
        return found


def token_map(reference: GraphSession, candidate: GraphSession) -> TokenMap | None:
    """How the ids of ``candidate`` go with those of ``reference``; None where they are the same.

    Raises:
        EvaluationError: the candidate has a token that the reference does not have.
    """
    if not (reference.has_tokenizer and candidate.has_tokenizer):
        return None
    theirs, ours = (_tokens(session.tokenizer()) for session in (reference, candidate))
    if theirs == ours and _rows(reference) == _rows(candidate):
        return None
    strange = sorted(ours.keys() - theirs.keys())
    if strange or sorted(ours.values()) != list(range(len(ours))):
        raise EvaluationError(
            f"The tokenizer of {candidate.folder} is not made of {reference.folder}'s: "
            f"{strange[:3] or 'its ids have gaps'}. They cannot be compared."
        )
    kept = np.empty(len(ours), dtype=np.int64)
    for token, number in ours.items():
        kept[number] = theirs[token]
    return TokenMap(kept, len(theirs))


def _rows(session: GraphSession) -> object:
    """Tokens that the graph tells apart; some may be padding that no text uses."""
    return read_optional_json(session.folder / "config.json").get("vocab_size")


def _tokens(tokenizer: Tokenizer) -> dict[str, int]:
    found: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    return found


class OfKeptTokens:
    """The graph of a source, spoken to in the ids of an artifact that has only some of its tokens."""

    def __init__(self, session: GraphSession, tokens: TokenMap, *, own_ids: bool = False) -> None:
        """``session`` runs the source; with ``own_ids`` it is given the source's ids."""
        self._session, self._map, self._own = session, tokens, own_ids
        self.outputs = session.outputs

    def run(
        self, ids: np.ndarray, mask: np.ndarray | None = None, fetch: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """As :meth:`GraphSession.run`; of logits that are one for each token, those of the kept ones."""
        found = self._session.run(ids if self._own else self._map.old(ids), mask, fetch)
        speaks = "logits" in found and found["logits"].shape[-1] > self._map.kept.max()
        return found | ({"logits": self._map.of_kept(found["logits"])} if speaks else {})

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [S, n]: as :meth:`GraphSession.logits`."""
        return self._map.of_kept(self._session.logits(self._map.old(ids)))
