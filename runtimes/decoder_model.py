"""A loaded decoder: generate, stream, chat."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self, TypedDict, Unpack, overload

import numpy as np

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.chat_template import ChatTemplate
from onnxforge.runtimes.decode_loop import DecodeLoop
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import DecoderState, new_state
from onnxforge.runtimes.detokenizer import Detokenizer
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.interruption import CancelToken, Interruption
from onnxforge.runtimes.prompts import Message, Prompt, Prompts, Truncate, checked_tokens, fit_context, is_batch, is_chat
from onnxforge.runtimes.result import Result
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.text_stream import TextStream
from onnxforge.runtimes.text_tokenizer import TextTokenizer


class Options(TypedDict, total=False):
    """Options of one request. Those absent or None come from generation_config.json, then transformers."""

    max_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    eos_token_id: int | Sequence[int] | None
    seed: int | None
    stop: str | Sequence[str] | None
    deadline: float | None
    cancel: CancelToken | None
    truncate: Truncate | None
