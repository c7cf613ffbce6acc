"""What a decoder graph asks for and gives, read once from its session."""

import re
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime

from onnxforge.runtimes.elements import ELEMENTS, Element
from onnxforge.runtimes.errors import ArtifactError

if TYPE_CHECKING:
    from onnxforge.runtimes.captured_steps import CapturedSteps

LOGITS_TO_KEEP = "num_logits_to_keep"
"""Overridable initializer, int64 scalar: give the logits of the last n tokens only; 0 (its default): all."""
SKIP_LAYERS = "skip_layers"
"""Overridable initializer, int64 [1]: 1 leaves some layers out, to draft; 0 (its default): none."""

_PAST = re.compile(r"past_key_values\.(\d+)\.(key|value)")
_ANY_TIME = nullcontext()
_KNOWN = ("input_ids", "attention_mask", "position_ids")


@dataclass(frozen=True)
class CacheTensor:
    """One past/present pair: names and the static part of [rows, heads, tokens, head_dim]."""

    past: str
    present: str
    heads: int
    head_dim: int
    element: Element
    """float32, float16, bfloat16, or int8: then the graph holds the scales, and nobody else needs them."""

    @property
    def dtype(self) -> np.dtype[np.number]:
        """What memory for it is made of: uint16 for bfloat16."""
        return self.element.storage

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token of one row."""
        return self.heads * self.head_dim * self.element.itemsize

    def shape(self, rows: int, tokens: int) -> tuple[int, int, int, int]:
        """Of a cache with room for so many rows and tokens."""
        return rows, self.heads, tokens, self.head_dim


@dataclass(frozen=True)
class DecoderGraph:
    """A decoder session with the facts that stepping needs."""

    session: onnxruntime.InferenceSession
    device: str
    inputs: frozenset[str]
    cache: tuple[CacheTensor, ...]
    vocabulary: int
    logits: Element
    context_length: int
    shared_cache: bool
    keeps_logits: bool
    """The graph can compute the logits of the last tokens only (`LOGITS_TO_KEEP`)."""
    skips_layers: bool = False
    """The graph can leave layers out (`SKIP_LAYERS`)."""
    captured_steps: "CapturedSteps | None" = None
    """Where steps are recorded as CUDA graphs; None: they are not."""

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes that one token of one row keeps in the cache, all layers."""
        return sum(tensor.bytes_per_token for tensor in self.cache)

    @property
    def quantized_cache(self) -> bool:
        """Past and present are int8."""
        return any(tensor.dtype == np.int8 for tensor in self.cache)

    @property
    def on_host(self) -> bool:
        """The graph's tensors live in the host's memory."""
        return self.device == "cpu"

    @property
    def turn(self) -> AbstractContextManager[object]:
        """To be held while the session runs."""
        return _ANY_TIME if self.captured_steps is None else self.captured_steps.turn

    @property
    def takes_positions(self) -> bool:
        """The graph asks for position_ids; fused attention counts them itself."""
        return "position_ids" in self.inputs


def read_graph(
    session: onnxruntime.InferenceSession,
    device: str,
    context_length: int,
    shared_cache: bool,
    vocabulary: int | None,
    captured_steps: "CapturedSteps | None" = None,
) -> DecoderGraph:
    """Describe a decoder session; `vocabulary` serves when the graph leaves the size of its logits open.

    Raises ArtifactError when inputs or outputs are not those of a decoder with past.
    """
    inputs = {item.name: item for item in session.get_inputs()}
    outputs = {item.name: item for item in session.get_outputs()}
    strange = sorted(name for name in inputs if name not in _KNOWN and not _PAST.fullmatch(name))
    if strange or "input_ids" not in inputs or "logits" not in outputs:
        raise ArtifactError(
            f"Not a decoder graph this runtime can feed: unknown inputs {strange}, inputs {sorted(inputs)}, "
            f"outputs {sorted(outputs)}. It needs input_ids, past_key_values.N.key/value and logits."
        )
    pairs: list[CacheTensor] = []
    for name, item in inputs.items():
        match = _PAST.fullmatch(name)
        if match is None:
            continue
        present = f"present.{match[1]}.{match[2]}"
        if present not in outputs or len(item.shape) != 4 or item.type not in ELEMENTS:
            raise ArtifactError(
                f"{name}: needs the output {present} and a 4-D tensor of {' or '.join(ELEMENTS)}, "
                f"found {item.type} {item.shape}."
            )
        if outputs[present].type != item.type:
            raise ArtifactError(
                f"{name} is {item.type} and {present} is {outputs[present].type}: one step's present is the "
                "next step's past, so both need one type."
            )
        heads, head_dim = item.shape[1], item.shape[3]
        if not isinstance(heads, int) or not isinstance(head_dim, int):
            raise ArtifactError(f"{name}: heads and head size must be static, found {item.shape}.")
        pairs.append(CacheTensor(name, present, heads, head_dim, ELEMENTS[item.type]))
    logits = outputs["logits"]
    size = logits.shape[-1] if isinstance(logits.shape[-1], int) else vocabulary
    element = ELEMENTS.get(logits.type)
    if size is None or element is None or not element.is_float:
        raise ArtifactError(f"logits: vocabulary size or type unknown ({logits.shape}, {logits.type}).")
    optional = {item.name for item in session.get_overridable_initializers()}
    return DecoderGraph(
        session=session,
        device=device,
        inputs=frozenset(inputs),
        cache=tuple(pairs),
        vocabulary=size,
        logits=element,
        context_length=context_length,
        shared_cache=shared_cache,
        keeps_logits=LOGITS_TO_KEEP in optional,
        skips_layers=SKIP_LAYERS in optional,
        captured_steps=captured_steps,
    )
