"""``run DIR PROMPT``: continue a text, or predict what the model's task asks for."""

import dataclasses
import json
import sys
from typing import Annotated

import typer

from onnxforge.compiler import generation_flags as flags
from onnxforge.compiler.options import Artifact, AsJson, Debug, Threads

_Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="The text to continue. Default: stdin.", show_default=False),
]


def run(
    folder: Artifact,
    prompt: _Prompt = None,
    max_new_tokens: flags.MaxNewTokens = 128,
    do_sample: flags.DoSample = None,
    temperature: flags.Temperature = None,
    top_k: flags.TopK = None,
    top_p: flags.TopP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    threads: Threads = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Continue PROMPT and print the text as it comes; a classifier or masked model prints its predictions."""
    from onnxforge.compiler.loaded import load_any
    from onnxforge.compiler.terminal import piped_text, show
    from onnxforge.runtimes import Encoder

    with load_any(folder, threads) as model:
        text = piped_text() if prompt is None else prompt
        if isinstance(model, Encoder):
            predictions = [dataclasses.asdict(found) for found in model.predict([text])[0]]
            print(json.dumps({"prompt": text, "predictions": predictions} if as_json else predictions))
            return
        with model.stream(
            text,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
        ) as stream:
            for piece in stream:
                if not as_json:
                    show(piece)
            result = stream.result
    if as_json:
        print(json.dumps({"prompt": text, **dataclasses.asdict(result)}))
        return
    print(flush=True)
    stats = result.stats
    print(
        f"{stats.prompt_tokens} prompt tokens at {stats.prefill_tokens_per_s:.1f}/s, "
        f"{stats.new_tokens} new at {stats.decode_tokens_per_s:.1f}/s, ended by {result.finish_reason}",
        file=sys.stderr,
    )
