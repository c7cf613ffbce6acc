"""One sequence being written: its tokens, its text, and when it is finished."""

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.detokenizer import Detokenizer
from onnxforge.runtimes.distribution import Distribution
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.result import FinishReason
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.stop_strings import StopStrings


class Answer:
    """Collects tokens until end of text, a stop string or the limit.

    Text is made at once when somebody watches it (a stream, stop strings), and at the end otherwise.
    """

    def __init__(
        self,
        options: GenerationOptions,
        limit: int,
        sampler: Sampler,
        detokenizer: Detokenizer,
        streamed: bool,
    ) -> None:
        self.tokens: list[int] = []
        self.finish_reason: FinishReason | None = None
        self._eos = frozenset(options.eos_token_id)
        self._limit = limit
        self._sampler = sampler
        self._detokenizer = detokenizer
        self._stops = StopStrings(options.stop)
        self._live = streamed or bool(options.stop)
        self._pieces: list[str] = []

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return self._limit - len(self.tokens)

    def ends_with(self, token: int) -> bool:
        """Whether `token` is one that ends every answer."""
        return token in self._eos

    def extend(self, logits: Floats) -> None:
        """Choose the next token from logits float32 [vocabulary] and see whether it ends the answer."""
        self._add(self._sampler.choose(logits))

    def verify(self, logits: Floats, drafted: int, source: Distribution | None) -> bool:
        """As `extend`, with a token proposed for this place (`Sampler.verify`); whether it was accepted."""
        self._add(self._sampler.verify(logits, drafted, source))
        return self.tokens[-1] == drafted

    def _add(self, token: int) -> None:
        self.tokens.append(token)
        if token in self._eos:
            self.finish_reason = "stop"
            return
        if self._live:
            self._pieces.append(self._stops.push(self._detokenizer.push(token)))
            if self._stops.found:
                self.finish_reason = "stop"
                return
        if len(self.tokens) >= self._limit:
            self.finish_reason = "length"

    def take_piece(self) -> str:
        """Text that became certain since the last call; after the end, all that was left."""
        if self.finish_reason is not None:
            self._finish_text()
        piece = "".join(self._pieces)
        self._pieces.clear()
        return piece

    def _finish_text(self) -> None:
        if not self._live:
            body = self.tokens[:-1] if self.tokens and self.tokens[-1] in self._eos else self.tokens
            self._pieces += [self._detokenizer.push(token) for token in body]
        self._live = True
        if not self._stops.found:
            self._pieces.append(self._stops.push(self._detokenizer.finish()))
        if not self._stops.found:
            self._pieces.append(self._stops.finish())
