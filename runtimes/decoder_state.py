"""One request's place in the text: its key/value cache and how far it has read.

Two forms. With GroupQueryAttention (`SharedState`) past and present are one buffer, written in place:

    past    [rows, heads, capacity, head_dim] --+
                                                +-> one allocation, bound to both sides once
    present [rows, heads, capacity, head_dim] --+

With the standard Attention (`PlainState`) each run returns a longer present, which is the next run's past.
"""

from collections.abc import Sequence
from typing import Protocol

import onnxruntime

from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.plain_state import PlainState
from onnxforge.runtimes.session import new_run_options
from onnxforge.runtimes.shared_state import SharedState


class DecoderState(Protocol):
    """The low-level decoding interface; not for use by two threads at once."""

    @property
    def rows(self) -> int:
        """Sequences decoded side by side."""

    @property
    def lengths(self) -> Int64s:
        """Tokens read so far, int64 [rows]."""

    @property
    def cache_bytes(self) -> int:
        """Bytes that keys and values take in memory now."""

    def prompt(self, prompts: Sequence[Int64s]) -> Floats:
        """Read one prompt per row, of any lengths; logits [rows, vocabulary] after each last token."""

    def step(self, tokens: Int64s, last_only: bool = False) -> Floats:
        """Read tokens [rows, n]; logits [rows, n, vocabulary], or [rows, 1, vocabulary] with `last_only`.

        The returned array is valid until the next step.
        """

    def rewind(self, count: int) -> None:
        """Forget the last `count` tokens of every row."""

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, in this order."""


def new_state(
    graph: DecoderGraph,
    rows: int,
    capacity: int,
    run_options: onnxruntime.RunOptions | None = None,
    min_rows: int = 1,
) -> DecoderState:
    """An empty state for `rows` sequences with room for `capacity` tokens each; the room grows as needed.

    With `min_rows` of 2 every run reads an even number of tokens (`SharedState`); then `rows` is 1, and an
    odd run that ends with the context's very last token is a ContextOverflow. Raises RequestError for other
    states.
    """
    options = new_run_options() if run_options is None else run_options
    if min_rows > 1 and (rows > 1 or not graph.shared_cache):
        raise RequestError(
            f"min_rows is {min_rows}: that needs one sequence and GroupQueryAttention's shared cache, and "
            f"this is {rows} {'with' if graph.shared_cache else 'without'} it. Pass min_rows=1."
        )
    if graph.shared_cache:
        return SharedState(graph, rows, capacity, options, min_rows)
    return PlainState(graph, rows, options)
