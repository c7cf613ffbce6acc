"""An answer as it is written."""

from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Self

from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.result import Result


class TextStream(Iterator[str]):
    """Iterate over it for text pieces; ``"".join(pieces)`` is the text that generate returns.

    Closing it, or leaving its ``with`` block, ends the request: from another thread, in the middle of a run.
    """

    def __init__(self, pieces: Generator[str, None, Result], interruption: Interruption) -> None:
        self._pieces = pieces
        self._interruption = interruption
        self._result: Result | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        try:
            return next(self._pieces)
        except StopIteration as end:
            if self._result is None:
                self._result = end.value
            raise

    @property
    def result(self) -> Result:
        """The whole result, once every piece was read. Raises RequestError before that."""
        if self._result is None:
            raise RequestError("The stream has not ended: read all its pieces before asking for the result.")
        return self._result

    def close(self) -> None:
        """End the request; nothing happens when it already ended."""
        self._interruption.interrupt("cancelled")
        try:
            self._pieces.close()
        except ValueError:
            return  # another thread is inside a run: it ends by the interruption

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
