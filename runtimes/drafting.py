"""Whether and how one request drafts: what it asks for, what its artifact says, and what is possible."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxforge.runtimes.answer import Answer
from onnxforge.runtimes.binding import Int64s
from onnxforge.runtimes.decode_loop import HEADROOM
from onnxforge.runtimes.decoder_graph import DecoderGraph
from onnxforge.runtimes.decoder_state import new_state
from onnxforge.runtimes.draft_length import DraftLength
from onnxforge.runtimes.drafter import Drafter
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.generation_options import GenerationOptions
from onnxforge.runtimes.interruption import Interruption
from onnxforge.runtimes.layer_skip_drafter import LayerSkipDrafter
from onnxforge.runtimes.model_drafter import ModelDrafter
from onnxforge.runtimes.ngram_drafter import NgramDrafter
from onnxforge.runtimes.sampling import Sampler
from onnxforge.runtimes.shared_state import SharedState
from onnxforge.runtimes.speculation import MOST_DRAFT_TOKENS, ROWS, USUAL_DRAFT_TOKENS, Speculation
from onnxforge.runtimes.speculative_loop import Source, SpeculativeLoop
from onnxforge.runtimes.step_cost import StepCost


@dataclass(frozen=True)
class DraftRequest:
    """The options of a request that speak of drafting, as they were passed."""

    max_draft_tokens: int | None = None
    prompt_lookup_num_tokens: int | None = None
    assistant_model: DecoderGraph | None = None
    min_rows: int | None = None


@dataclass(frozen=True)
class Drafting:
    """How one request decodes."""

    max_draft_tokens: int
    """0: it does not draft."""
    min_rows: int
    """Every run reads a multiple of so many tokens."""
    assistant: DecoderGraph | None = None
    """The draft model; None: there is none."""
    skips_layers: bool = False
    """The model drafts for itself, with layers left out; n-grams where there is neither."""
    step_cost: tuple[float, ...] = ()


def drafting_for(
    asked: DraftRequest,
    default: Speculation | None,
    graph: DecoderGraph,
    rows: int,
    draft: DecoderGraph | None,
) -> Drafting:
    """What a request of `rows` prompts does; `draft` is the draft model that the target was loaded with.

    An option wins over the artifact's default. Raises RequestError for options out of range, at odds with one
    another, or impossible for this graph or number of prompts.
    """
    _check(asked, graph.context_length)
    assistant = asked.assistant_model or (None if asked.prompt_lookup_num_tokens else draft)
    count = asked.prompt_lookup_num_tokens if asked.max_draft_tokens is None else asked.max_draft_tokens
    wanted = asked.assistant_model is not None if count is None else count > 0
    if wanted or (asked.min_rows or 1) > 1:
        _check_possible(graph, rows)
    plain = asked.min_rows == 1 and not wanted
    possible = graph.shared_cache and rows == 1 and not plain
    enabled = default is not None and default.enabled
    if count is None:
        usual = default.max_draft_tokens if default is not None and enabled else USUAL_DRAFT_TOKENS
        drafts = assistant is not None or graph.skips_layers or enabled
        count = min(usual, graph.context_length - 1) if drafts and possible else 0
    if count > 0 and asked.min_rows == 1:
        raise RequestError(
            "min_rows is 1 and the request drafts: drafting reads an even number of tokens in every run. "
            "Leave min_rows out, or pass max_draft_tokens=0."
        )
    usual_rows = ROWS if count > 0 else default.min_rows if default is not None and possible else 1
    return Drafting(
        max_draft_tokens=count,
        min_rows=asked.min_rows or usual_rows,
        assistant=assistant if count > 0 else None,
        skips_layers=graph.skips_layers and assistant is None and not asked.prompt_lookup_num_tokens,
        step_cost=default.step_cost if default is not None else (),
    )


def speculative_loop(
    drafting: Drafting,
    graph: DecoderGraph,
    prompt: Int64s,
    answer: Answer,
    limit: int,
    options: GenerationOptions,
    interruption: Interruption,
) -> SpeculativeLoop:
    """The loop of a request that drafts; `limit` new tokens at most."""
    capacity = len(prompt) + min(limit, HEADROOM) + drafting.max_draft_tokens
    state = new_state(graph, 1, capacity, interruption.run_options, drafting.min_rows)
    ngrams = NgramDrafter()
    model: Drafter | None = None
    if drafting.assistant is not None:
        model = _model_drafter(drafting.assistant, graph, capacity, options, interruption)
    elif drafting.skips_layers and isinstance(state, SharedState):
        sampler = Sampler(options, (), drafts=True)
        model = LayerSkipDrafter(state, graph.context_length, graph.vocabulary, sampler, options.eos_token_id)
    # Drawn drafts: tokens then hang on how many were drafted, and equal seeds need equal lengths. No clock.
    repeats = model is not None and options.do_sample and options.seed is not None
    cost = StepCost(drafting.step_cost, ngrams.cost if model is None else model.cost, learns=not repeats)
    most = drafting.max_draft_tokens
    sources = [Source(ngrams, DraftLength(most, cost, ngrams.prior, free=True))]
    if model is not None:
        sources.insert(0, Source(model, DraftLength(most, cost, model.prior)))
    return SpeculativeLoop(state, prompt, answer, interruption, sources, cost)


def _model_drafter(
    assistant: DecoderGraph,
    graph: DecoderGraph,
    capacity: int,
    options: GenerationOptions,
    interruption: Interruption,
) -> ModelDrafter:
    state = new_state(assistant, 1, min(capacity, assistant.context_length), interruption.run_options)
    sampler = Sampler(options, (), drafts=True)
    common = min(assistant.vocabulary, graph.vocabulary)
    return ModelDrafter(state, assistant.context_length, common, sampler, options.eos_token_id)


def _check(asked: DraftRequest, context: int) -> None:
    named: Sequence[tuple[str, int | None]] = (
        ("max_draft_tokens", asked.max_draft_tokens),
        ("prompt_lookup_num_tokens", asked.prompt_lookup_num_tokens),
    )
    most = min(MOST_DRAFT_TOKENS, context - 1)
    for name, value in named:
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise RequestError(
                f"{name} is {value!r}; pass a whole number from 0 (no drafts) to {most}"
                f"{', the model having a context of ' + str(context) if most < MOST_DRAFT_TOKENS else ''}."
            )
    if asked.prompt_lookup_num_tokens is not None and asked.max_draft_tokens is not None:
        raise RequestError(
            "max_draft_tokens and prompt_lookup_num_tokens name the same number; pass one of them."
        )
    if asked.prompt_lookup_num_tokens and asked.assistant_model is not None:
        raise RequestError(
            "prompt_lookup_num_tokens and assistant_model are two ways to draft; pass one of them."
        )
    rows = asked.min_rows
    if rows is not None and (not isinstance(rows, int) or isinstance(rows, bool) or rows not in (1, ROWS)):
        raise RequestError(f"min_rows is {rows!r}; pass 1 (plain steps) or 2 (the numbers of drafted steps).")


def _check_possible(graph: DecoderGraph, rows: int) -> None:
    if rows > 1:
        raise RequestError(
            f"Speculative decoding takes one prompt, and this batch has {rows}: pass them one by one, or "
            "leave out max_draft_tokens, assistant_model and min_rows."
        )
    if not graph.shared_cache:
        raise RequestError(
            "Speculative decoding needs GroupQueryAttention over a shared cache, which this graph lacks: "
            "compile for a target with fuse-attention, or leave out max_draft_tokens, assistant_model and "
            "min_rows."
        )
