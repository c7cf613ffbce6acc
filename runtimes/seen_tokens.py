"""The different tokens of a text, in the order they came, for the repetition penalty."""

from collections.abc import Iterable

import numpy as np

from onnxforge.runtimes.binding import Int64s


class SeenTokens:
    """A set of token ids that is an array too, and that can go back to an earlier moment."""

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self._members: set[int] = set()
        self._ids = np.empty(64, np.int64)
        self.add(tokens)

    def __len__(self) -> int:
        """Also the mark of this moment, for `back_to`."""
        return len(self._members)

    @property
    def ids(self) -> Int64s:
        """int64 [len], each once."""
        return self._ids[: len(self._members)]

    def add(self, tokens: Iterable[int]) -> None:
        """Include `tokens`; those already there change nothing."""
        for token in tokens:
            if token in self._members:
                continue
            if len(self._members) == len(self._ids):
                self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._ids[len(self._members)] = token
            self._members.add(token)

    def back_to(self, mark: int) -> None:
        """Forget all that was added since the length was `mark`."""
        for token in self._ids[mark : len(self._members)]:
            self._members.remove(int(token))
