"""One graph from a prompt to its answer: the decoder inside an ONNX Loop that drafts, verifies and stops."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from onnxforge.passes import notes
from onnxforge.passes import speculative_text as text
from onnxforge.passes.base import DerivingPass, PassRefused
from onnxforge.passes.constants import add_array
from onnxforge.passes.graph_text import splice
from onnxforge.passes.limit_logits import LOGITS_TO_KEEP
from onnxforge.passes.matching import CONTRIB, is_op, remove_dead
from onnxforge.passes.sampling_text import CHOOSE
from onnxforge.passes.skip_layers import SKIP as SKIP_LAYERS
from onnxforge.passes.skip_layers import SkipLayers
from onnxforge.passes.skipping_text import COLLECT, SKIP, SKIP_READS

WHAT = "speculative loop"
_PAST = re.compile(r"past_key_values\.(\d+\.(?:key|value))")
_KNOWN = ("input_ids", "attention_mask", "position_ids", LOGITS_TO_KEEP)
_CONTEXT = "onnxforge.context_length"
_INT64, _BOOL = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.BOOL)
_OPTIONS = {
    "temperature": (ir.DataType.FLOAT, 0.0),
    "top_k": (ir.DataType.INT64, 50),
    "top_p": (ir.DataType.FLOAT, 1.0),
    "seed": (ir.DataType.INT64, 0),
}
"""Optional inputs and defaults: transformers' own, but for a temperature of 0, which takes the likeliest."""
_MOST_SKIPPING = ("max_layer_skip_tokens", ir.DataType.INT64, 0)
MARKED = "marked"
_FEEDS = ("input_ids", "attention_mask", "position_ids", "keep", "need")
_CHOOSE_READS = ("need", "drawing", "tokens", "answer_places")
_ACCEPT_READS = ("none", "limit", "end", "guess", "places", "drafted", "reading")
_SMALL = 8
_CHUNK, _QUANTIZED_CHUNK = 2048, 512
"""Prompt tokens that one run reads, of a float and an int8 cache, as in runtimes/prompt_chunk.py."""


@dataclass(frozen=True)
class AddSpeculativeLoop(DerivingPass):
    """Derive a model that generates: prompt and limits in, prompt and answer out, in one run.

    ::

        input_ids [1,S]                                  sequences [1,S+new]   (the prompt is in front)
        max_new_tokens, max_draft_tokens                 num_steps             (runs of the decoder)
        eos_token_id [E]                                 num_drafted_tokens, num_accepted_tokens
        temperature, top_k, top_p, seed  (optional)
              │                                              ▲
              ▼                                              │
        ┌ Loop ──────────────────────────────────────────────────────────────────────┐
        │  tokens[base:] ++ guess ──► decoder(past) ──► choices (ArgMax)             │
        │         ▲ n-gram lookup       │ present          │ == guess, up to the     │
        │         └────── tokens ◄──────┼──────────────────┘    first miss, or eos   │
        │                base = how many lines of the cache are true                 │
        └────────────────────────────────────────────────────────────────────────────┘

    The decoder's nodes stand in the body, once: the first iterations read the prompt, the others verify. All
    weights are the finished model's own tensors, and stay in the outer graph: ONNX Runtime prepacks those for
    a body one level down, and lets go of what it packed; it does neither for a loop in a loop, nor for a
    body's own initializers.

    Greedy tokens equal those of plain decoding that reads an even number of rows a run (see ``DRAFT``),
    whatever ``max_draft_tokens`` is; 0 drafts nothing. The answer ends with an ``eos_token_id``, after
    ``max_new_tokens``, or where the context is full: a graph cannot raise, so a prompt that fills or
    overflows the context, or is empty, comes back as it is, with ``num_steps`` 0.

    At a ``temperature`` above its default of 0 tokens are drawn, by one number per place and ``seed``: again
    those of plain decoding, whatever is drafted. The defaults of ``top_k`` and ``top_p`` are transformers'.

    With ``branches`` the graph can leave those out, as ``skip-layers`` has it, and takes one optional input
    more, ``max_layer_skip_tokens``: where n-grams are not sure, the model guesses so many tokens itself, each
    in an iteration with layers left out, before it verifies them. 0, the default, leaves that out.

    Source: prompt lookup decoding (Saxena 2023), greedy verification of Leviathan et al. 2023 (2211.17192),
    drafting with layers left out of Zhang et al. 2023 (2309.08168).
    """

    file: ClassVar[str] = "onnx/model_spec.onnx"
    summary: ClassVar[str] = "a second graph that generates in one run, with n-gram speculation in a Loop"

    branches: str = ""
    """Numbers of residual branches, as in ``skip-layers``, or ``marked`` for those of a search; empty:
    none."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a graph that cannot step over a shared cache, or whose branches cannot be left out.

        Raises:
            PassRefused: an encoder, an input that a loop cannot feed, or a cache that is not
                GroupQueryAttention's: rejected drafts could not be taken back.
        """
        inputs = {value.name or "": value for value in model.graph.inputs}
        pasts = {name for name in inputs if _PAST.fullmatch(name)}
        if not pasts or "logits" not in {value.name for value in model.graph.outputs}:
            raise PassRefused(
                f"{self.text()}: the graph generates nothing (no past_key_values.N.key, or no logits). "
                "A loop is for decoders; leave this pass out with `--without add-speculative-loop`."
            )
        if strange := sorted(inputs.keys() - pasts - set(_KNOWN)):
            raise PassRefused(
                f"{self.text()}: a loop cannot feed the inputs {', '.join(strange)}. It feeds "
                f"{', '.join(_KNOWN)} and the cache. Leave it out with `--without add-speculative-loop`."
            )
        for name in sorted(pasts):
            readers = [node for node in inputs[name].consumers() if not is_op(node, "Shape")]
            if len(readers) != 1 or not is_op(readers[0], "GroupQueryAttention", domain=CONTRIB):
                found = ", ".join(sorted({node.op_type for node in readers})) or "nothing"
                raise PassRefused(
                    f"{self.text()}: {name} is read by {found}; taking back rejected drafts needs "
                    "GroupQueryAttention. See the ledger of fuse-attention for why this layer was not fused, "
                    "or leave this pass out with `--without add-speculative-loop`."
                )
        if self.branches:
            self._skipping().requires(model)
        if _CONTEXT not in model.metadata_props:
            raise PassRefused(f"{self.text()}: the model does not say how long its context is ({_CONTEXT}).")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Build the second model; ``model`` is only read."""
        derived = self._skipping()(model).model if self.branches else model.clone()
        _Generator(derived).build(int(model.metadata_props[_CONTEXT]))
        common.NameFixPass()(derived)
        notes.match(WHAT, self.file)
        return ir.passes.PassResult(derived, modified=True)

    def _skipping(self) -> SkipLayers:
        return SkipLayers(branches="" if self.branches == MARKED else self.branches)


class _Generator:
    """Turns a decoder's graph into the generating one, in place. Lives for one call."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports[""]
        inputs = {value.name or "": value for value in self._graph.inputs}
        outputs = {value.name or "": value for value in self._graph.outputs}
        self._logits = outputs["logits"]
        self._past = [value for name, value in inputs.items() if _PAST.fullmatch(name)]
        self._present = [outputs[_PAST.sub(r"present.\1", value.name or "")] for value in self._past]
        self._fed = {name: inputs[name] for name in _KNOWN if name in inputs}
        self._skip = inputs.get(SKIP_LAYERS)

    def build(self, context: int) -> None:
        """Rewrite the graph."""
        graph = self._graph
        fed = [*self._fed.values(), *self._past, *([self._skip] if self._skip is not None else [])]
        decoder = _depending_on(fed)
        graph.remove(decoder)
        graph.inputs.clear()
        graph.outputs.clear()
        for name in (LOGITS_TO_KEEP, SKIP_LAYERS):
            graph.initializers.pop(name, None)
        ids = _value("input_ids", _INT64, [1, "sequence_length"])
        new_tokens, drafts = (_value(name, _INT64, []) for name in ("max_new_tokens", "max_draft_tokens"))
        eos = _value("eos_token_id", _INT64, ["num_eos_tokens"])
        graph.inputs.extend([ids, new_tokens, eos, drafts])
        longest, chunk = (
            add_array(graph, name, np.array([number], np.int64))
            for name, number in (("loop/context_length", context), ("loop/chunk", self._chunk()))
        )
        choice = [self._option(name, *value) for name, value in _OPTIONS.items()]
        asked = [ids, new_tokens, drafts, longest, choice[0]]
        state, going, room = self._add(graph, text.BEGIN, asked, "begin")
        carried = [state]
        if self._skip is not None:
            carried.append(add_array(graph, "loop/no_guesses", np.empty(0, np.int64)))
        body = self._body(decoder, chunk, [eos, *choice])
        carried += self._zeros(room)
        loop = ir.Node(
            "", "Loop", [None, going, *carried], [ir.AttrGraph("body", body)], num_outputs=len(carried)
        )
        loop.name = "/loop"
        graph.append(loop)
        for made, value in zip(loop.outputs, body.inputs[2:], strict=True):
            # Every output has a name, used or not: ONNX Runtime 1.31 crashes where one is left out.
            made.name, made.type = f"loop/last/{value.name}", value.type
        ends = self._add(graph, text.END, loop.outputs[:1], "end")
        for value, name in zip(ends, text.OUTPUTS, strict=True):
            value.name = name
        graph.outputs.extend(ends)
        graph.sort()

    def _chunk(self) -> int:
        return _QUANTIZED_CHUNK if self._past[0].dtype is ir.DataType.INT8 else _CHUNK

    def _body(self, decoder: Sequence[ir.Node], chunk: ir.Value, choice: Sequence[ir.Value]) -> ir.Graph:
        """One run of the decoder and what it changes: the numbers and tokens of ``state``, and the cache."""
        turn, go = _value("loop/turn", _INT64, []), _value("loop/go", _BOOL, [])
        carried = [_value("loop/state", _INT64, ["numbers_and_tokens"])]
        if self._skip is not None:
            carried.append(_value("loop/guessed", _INT64, ["guesses"]))
        body = ir.Graph([turn, go, *carried, *self._past], [], nodes=[], name="step")
        step = _named(self._add(body, text.DRAFT, [carried[0], self._past[0], chunk], "draft"))
        if self._skip is not None:
            most = self._option(*_MOST_SKIPPING)
            given = [*(step[name] for name in SKIP_READS), carried[1], most]
            plain = [step[name].producer() for name in _FEEDS]
            step |= _named(self._add(body, SKIP, given, "skip"))
            remove_dead(node for node in plain if node is not None)
            self._skip.replace_all_uses_with(step["skip"])
        for name in _KNOWN:
            if name in self._fed:
                self._fed[name].replace_all_uses_with(step["keep" if name == LOGITS_TO_KEEP else name])
        body.extend(decoder)
        _take_in_small_integers(body, decoder)
        read = [self._logits, *(step[name] for name in _CHOOSE_READS), *choice]
        (seen,) = self._add(body, CHOOSE, read, "choose")
        known = [step["tokens"], step["numbers"], seen, *(step[name] for name in _ACCEPT_READS)]
        going, *after = self._add(body, text.ACCEPT, known, "accept")
        if self._skip is not None:
            after += self._add(body, COLLECT, [carried[1], seen, step["guessing"]], "collect")
        for value in (*self._past, *self._present):
            assert value.shape is not None
            # True names only: ONNX Runtime plans memory by them. The whole buffer goes in and comes out.
            value.shape = ir.Shape([1, value.shape[1], "capacity", value.shape[3]])
        body.outputs.extend([going, *after, *self._present])
        return body

    def _option(self, name: str, dtype: ir.DataType, default: float) -> ir.Value:
        """An input that a caller may leave out."""
        tensor = ir.tensor(np.array(default, dtype.numpy()), name=name)
        value = ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(dtype), const_value=tensor)
        self._graph.inputs.append(value)
        self._graph.register_initializer(value)
        return value

    def _zeros(self, count: ir.Value) -> list[ir.Value]:
        """For each cache tensor, zeros for ``count`` tokens; those of one form are one value."""
        made: dict[tuple[object, ...], ir.Value] = {}
        for value in self._past:
            heads, size, dtype = _form(value)
            if (heads, size, dtype) not in made:
                around = [np.array([1, heads], np.int64), np.array([size], np.int64)]
                before, behind = (add_array(self._graph, "loop/cache_shape", part) for part in around)
                shape = ir.node("Concat", [before, count, behind], {"axis": 0})
                filler = ir.tensor(np.zeros(1, dtype.numpy()))
                zeros = ir.node("ConstantOfShape", [shape.outputs[0]], {"value": filler})
                for node, part in ((shape, "shape"), (zeros, "zeros")):
                    node.name = f"/loop/begin/cache_{len(made)}/{part}"
                    node.outputs[0].name = node.name[1:]
                    self._graph.append(node)
                made[heads, size, dtype] = zeros.outputs[0]
        return [made[_form(value)] for value in self._past]

    def _add(self, graph: ir.Graph, piece: str, inputs: Sequence[ir.Value], prefix: str) -> list[ir.Value]:
        nodes, outputs = splice(piece, inputs, f"loop/{prefix}", self._opset)
        graph.extend(nodes)
        return outputs


def _named(values: Sequence[ir.Value]) -> dict[str, ir.Value]:
    """Values of a spliced text by the names that they have there."""
    return {(value.name or "").rsplit("/", 1)[-1]: value for value in values}


def _depending_on(sources: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes that ``sources`` reach, in the graph's order, and the dequantization of their weights.

    What is left follows from weights alone: in the outer graph ONNX Runtime folds it and drops what it folded
    (in the body it would keep both). DequantizeLinear stays beside its reader, or the two do not fuse.
    """
    pending = [node for value in sources for node in value.consumers()]
    graph = pending[0].graph
    assert graph is not None
    pending += [node for node in graph if node.op_type == "DequantizeLinear"]
    reached: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node not in reached:
            reached.add(node)
            pending += [reader for value in node.outputs for reader in value.consumers()]
    return [node for node in graph if node in reached]


def _take_in_small_integers(body: ir.Graph, decoder: Sequence[ir.Node]) -> None:
    """Give ``body`` constants of its own for the axes and counts that ``decoder`` reads from the outer graph.

    A GPU and the CPU would read those together, and ONNX Runtime copies an outer value from one to the other
    in every step; of a graph's own constants it keeps two.
    """
    own: dict[ir.Value, ir.Value] = {}
    for node in decoder:
        for index, value in enumerate(node.inputs):
            tensor = value.const_value if value is not None and value.is_initializer() else None
            if (
                value is None
                or tensor is None
                or tensor.dtype is not ir.DataType.INT64
                or tensor.size > _SMALL
            ):
                continue
            if value not in own:
                made = ir.node("Constant", [], {"value": ir.tensor(tensor.numpy())})
                made.outputs[0].name = f"loop/{value.name}"
                made.name = f"/{made.outputs[0].name}"
                body.insert_before(decoder[0], made)
                own[value] = made.outputs[0]
            node.replace_input_with(index, own[value])


def _form(cache: ir.Value) -> tuple[int, int, ir.DataType]:
    """Heads, head size and type of a cache tensor [1, heads, tokens, size]."""
    heads, size = (cache.shape[1], cache.shape[3]) if cache.shape is not None else (None, None)
    if not isinstance(heads, int) or not isinstance(size, int) or cache.dtype is None:
        raise PassRefused(f"{cache.name}: heads and head size must be numbers, found {cache.shape}.")
    return heads, size, cache.dtype


def _value(name: str, kind: ir.TensorType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=kind)
