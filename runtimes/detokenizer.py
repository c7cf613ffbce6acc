"""Token ids to text, piece by piece, without ever showing half a character."""

from collections.abc import Callable, Sequence

_UNKNOWN = "�"
_CONTEXT = 6


class Detokenizer:
    """Turns a growing list of tokens into text pieces whose concatenation is the text.

    Decoders look at neighbours (a word's first piece loses its leading space), so a piece is the difference
    between two decodings that start a few tokens back, the prompt's end included. A decoding that ends in
    U+FFFD may be a character whose bytes have not all come: that end is held back until they do or `finish`.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._window = list(prompt[-_CONTEXT:])
        self._shown = len(_complete(decode(self._window)))
        self._settled = len(self._window)

    def push(self, token: int) -> str:
        """The text that became certain with this token, often one word, sometimes nothing."""
        self._window.append(token)
        text = self._decode(self._window)
        whole = _complete(text)
        piece = whole[self._shown :]
        self._shown = max(self._shown, len(whole))
        if piece and len(whole) == len(text):
            self._slide()
        return piece

    def finish(self) -> str:
        """What was held back, as the decoder shows it."""
        text = self._decode(self._window)
        piece = text[self._shown :]
        self._shown = len(text)
        return piece

    def _slide(self) -> None:
        """Start later decodings at the tokens of the last piece: their cost stays constant."""
        self._window = self._window[self._settled :]
        self._settled = len(self._window)
        self._shown = len(self._decode(self._window))


def _complete(text: str) -> str:
    return text.rstrip(_UNKNOWN)
