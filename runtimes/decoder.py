"""A loaded decoder: generate, stream, chat."""

from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast, overload

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.chat_template import ChatTemplate
from onnxforge.runtimes.decode_loop import DecodeLoop
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import DecoderState, new_state
from onnxforge.runtimes.detokenizer import Detokenizer
from onnxforge.runtimes.drafting import DraftRequest, drafting_for, speculative_loop
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.prompts import (
    Message,
    Prompt,
    Prompts,
    checked_tokens,
    fit_context,
    is_batch,
    is_chat,
)
from onnxforge.runtimes.request_options import NOT_GENERATION, Options
from onnxforge.runtimes.result import Result
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.text_stream import TextStream
from onnxforge.runtimes.text_tokenizer import TextTokenizer
from onnxforge.runtimes.token_loop import TokenLoop


class Decoder:
    """A loaded decoder artifact. One session serves any number of threads; each request has its own state."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        graph: DecoderGraph,
        tokenizer: TextTokenizer,
        chat_template: ChatTemplate | None,
        defaults: GenerationOptions,
        draft: "Decoder | None" = None,
    ) -> None:
        """`draft` drafts for requests that name no other, and is closed with this model. Raises RequestError
        when its tokens are others."""
        self.folder = folder
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        self.defaults = defaults
        self._open_graph: DecoderGraph | None = graph
        self._draft = draft
        if draft is not None:
            _check_draft(self, draft)

    @property
    def graph(self) -> DecoderGraph:
        """The session and what it expects. Raises RequestError after `close`."""
        if self._open_graph is None:
            raise RequestError(f"{self.folder}: the model was closed; load it again.")
        return self._open_graph

    # To the type checker a text is a sequence of texts too and matches both; the first one counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompt: Prompt, **options: Unpack[Options]
    ) -> Result: ...

    @overload
    def generate(self, prompt: Prompts, **options: Unpack[Options]) -> list[Result]: ...

    def generate(self, prompt: Prompt | Prompts, **options: Unpack[Options]) -> Result | list[Result]:
        """Continue a text, a chat or token ids; a list of these gives a list of results.

        A text gets the tokenizer's special tokens, a chat is rendered by the model's template, ids are taken
        as they are. Raises RequestError, ContextOverflow (before anything runs) and NumericalError.
        """
        if is_batch(prompt):
            return self._finish(cast(Prompts, prompt), options)
        return self._finish([cast(Prompt, prompt)], options)[0]

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> TextStream:
        """As `generate` for one prompt, by pieces. The request is checked now and runs as pieces are read."""
        if is_batch(prompt):
            raise RequestError("stream takes one prompt; stream each prompt of a batch by itself.")
        interruption = _interruption(options)
        loop, answers = self._prepare([prompt], options, interruption, streamed=True)
        return TextStream(_pieces(loop, answers[0], interruption), interruption)

    def chat(self, messages: Sequence[Message], **options: Unpack[Options]) -> Result:
        """Answer a chat; `generate` with a check that these are messages."""
        if not is_chat(messages):
            raise RequestError("chat takes a list of messages, each with a role and content.")
        return self.generate(messages, **options)

    @property
    def vocabulary(self) -> int:
        """Token ids run from 0 to this, exclusive."""
        return self.graph.vocabulary

    def new_state(self, rows: int = 1, capacity: int = 256, min_rows: int = 1) -> DecoderState:
        """The low-level interface: an empty cache for `rows` sequences of `capacity` tokens; it grows.

        With `min_rows` of 2 its numbers are those of speculative requests (see `new_state` there).
        """
        return new_state(self.graph, rows, capacity, min_rows=min_rows)

    def prompt_tokens(self, prompt: Prompt) -> list[int]:
        """The token ids that a prompt is read as."""
        if isinstance(prompt, str):
            return self._known(self.tokenizer.encode(prompt, add_special_tokens=True))
        if not is_chat(prompt):
            return checked_tokens(prompt, self.graph.vocabulary)
        if self.chat_template is None:
            raise RequestError(
                f"{self.folder}: this model has no chat template; pass a text instead of messages."
            )
        text = self.chat_template.render(cast(Sequence[Message], prompt))
        return self._known(self.tokenizer.encode(text, add_special_tokens=False))

    def _known(self, tokens: list[int]) -> list[int]:
        """``tokens``, once it is sure that the model has a row for each."""
        if max(tokens, default=0) >= self.graph.vocabulary:
            raise RequestError(
                f"{self.folder}: the tokenizer reads this text as id {max(tokens)}, and the model has "
                f"{self.graph.vocabulary}. tokenizer.json belongs to another model."
            )
        return tokens

    def close(self) -> None:
        """Release the session; requests that are running end normally."""
        self._open_graph = None
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self, prompts: Prompts | Sequence[Prompt], options: Options) -> list[Result]:
        with _interruption(options) as interruption:
            loop, answers = self._prepare(prompts, options, interruption, streamed=False)
            for _ in loop.steps():
                pass
        return [_result(loop, row, answer, answer.take_piece()) for row, answer in enumerate(answers)]

    def _prepare(
        self,
        prompts: Prompts | Sequence[Prompt],
        options: Options,
        interruption: Interruption,
        streamed: bool,
    ) -> tuple[TokenLoop, list[Answer]]:
        graph, truncate = self.graph, options.get("truncate")
        chosen = self.defaults.changed({k: v for k, v in options.items() if k not in NOT_GENERATION})
        draft = None if self._draft is None else self._draft.graph
        drafting = drafting_for(self._asked(options), self.manifest.speculation, graph, len(prompts), draft)
        reads: list[Int64s] = []
        answers: list[Answer] = []
        longest = 0
        for row, prompt in enumerate(prompts):
            tokens, limit = fit_context(
                self.prompt_tokens(prompt), chosen.max_new_tokens, graph.context_length, truncate
            )
            sampler = Sampler(chosen, tokens, stream=row)
            detokenizer = Detokenizer(self.tokenizer.decode, tokens)
            answers.append(Answer(chosen, limit, sampler, detokenizer, streamed))
            reads.append(np.array(tokens, np.int64))
            longest = max(longest, limit)
        if drafting.max_draft_tokens > 0:
            loop = speculative_loop(drafting, graph, reads[0], answers[0], longest, chosen, interruption)
            return loop, answers
        return DecodeLoop(graph, reads, answers, longest, interruption, drafting.min_rows), answers

    def _asked(self, options: Options) -> DraftRequest:
        assistant = options.get("assistant_model")
        if assistant is not None:
            if not isinstance(assistant, Decoder):
                raise RequestError(f"assistant_model is {assistant!r:.60}; pass a Decoder that `load` gave.")
            _check_draft(self, assistant)
        return DraftRequest(
            options.get("max_draft_tokens"),
            options.get("prompt_lookup_num_tokens"),
            None if assistant is None else assistant.graph,
            options.get("min_rows"),
        )


def _check_draft(target: Decoder, draft: Decoder) -> None:
    """Raises RequestError when the draft's tokens are not the target's."""
    difference = target.tokenizer.difference(draft.tokenizer)
    if difference is not None:
        raise RequestError(
            f"{draft.folder} cannot draft for {target.folder}: {difference}. A draft model needs the very "
            "tokenizer of its target; take a smaller model of the same family."
        )


def _interruption(options: Options) -> Interruption:
    return Interruption(options.get("cancel"), options.get("deadline"))


def _pieces(loop: TokenLoop, answer: Answer, interruption: Interruption) -> Generator[str, None, Result]:
    shown: list[str] = []
    with interruption:
        for _ in loop.steps():
            piece = answer.take_piece()
            if piece:
                shown.append(piece)
                yield piece
    rest = answer.take_piece()
    if rest:
        shown.append(rest)
        yield rest
    return _result(loop, 0, answer, "".join(shown))


def _result(loop: TokenLoop, row: int, answer: Answer, text: str) -> Result:
    if answer.finish_reason is None:
        raise RequestError("The request has not ended.")
    return Result(text, tuple(answer.tokens), answer.finish_reason, loop.stats(row))
