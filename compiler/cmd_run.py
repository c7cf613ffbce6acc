"""``run DIR PROMPT``: continue a text, or predict what the model's task asks for."""

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from onnxforge.compiler import generation_flags as flags
from onnxforge.compiler.options import Artifact, AsJson, CudaGraph, Debug, Threads

if TYPE_CHECKING:
    from onnxforge.runtimes import Decoder, Result

_MOST_NEW_TOKENS = 128
_Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to continue. Default: stdin.", show_default=False),
]

_MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens",
        "-n",
        help=f"At most so many new tokens. Default: what fits, at most {_MOST_NEW_TOKENS}.",
    ),
]
_Truncate = Annotated[
    bool, typer.Option("--truncate", help="Drop the oldest tokens of a prompt that does not fit.")
]


def run(
    folder: Artifact,
    prompt: _Prompt = None,
    max_new_tokens: _MaxNewTokens = None,
    do_sample: flags.DoSample = None,
    temperature: flags.Temperature = None,
    top_k: flags.TopK = None,
    top_p: flags.TopP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    truncate: _Truncate = False,
    max_draft_tokens: flags.MaxDraftTokens = None,
    draft: flags.Draft = None,
    threads: Threads = None,
    cuda_graph: CudaGraph = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue PROMPT and print the text as it comes; a classifier or masked model prints its predictions."""
    from onnxforge.compiler.loaded import load_any
    from onnxforge.compiler.terminal import piped_text, show
    from onnxforge.runtimes import Encoder

    with load_any(folder, threads, draft, cuda_graph) as model:
        text = piped_text() if prompt is None else prompt
        if isinstance(model, Encoder):
            predictions = [dataclasses.asdict(found) for found in model.predict([text])[0]]
            print(json.dumps({"prompt": text, "predictions": predictions} if as_json else predictions))
            return
        with model.stream(
            text,
            max_new_tokens=_what_fits(model, text, truncate) if max_new_tokens is None else max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            truncate="left" if truncate else None,
            max_draft_tokens=max_draft_tokens,
        ) as stream:
            for piece in stream:
                if not as_json:
                    show(piece)
            result = stream.result
    if as_json:
        print(json.dumps({"prompt": text, **dataclasses.asdict(result)}))
        return
    print(flush=True)
    print(_summary(result), file=sys.stderr)


def _summary(result: "Result") -> str:
    stats = result.stats
    line = (
        f"{stats.prompt_tokens} prompt tokens at {stats.prefill_tokens_per_s:.1f}/s, "
        f"{stats.new_tokens} new at {stats.decode_tokens_per_s:.1f}/s, ended by {result.finish_reason}"
    )
    drafts = stats.speculative
    if drafts is None or drafts.rounds == 0:
        return line
    return (
        f"{line}; {drafts.draft_tokens_accepted} of {drafts.draft_tokens_proposed} drafted tokens accepted, "
        f"{drafts.mean_emitted_tokens_per_round:.2f} tokens per step"
    )


def _what_fits(model: "Decoder", text: str, truncate: bool) -> int:
    """New tokens when nobody said how many: what the prompt leaves of the context, with a bound."""
    context = model.manifest.context_length
    left = context - len(model.prompt_tokens(text))
    return min(_MOST_NEW_TOKENS, max(left, context // 2 if truncate else 1, 1))
