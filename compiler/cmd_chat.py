"""``chat DIR``: a conversation, or one answer when the question comes through a pipe."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from onnxforge.compiler import generation_flags as flags
from onnxforge.compiler.options import Artifact, AsJson, CudaGraph, Debug, Threads

if TYPE_CHECKING:
    from onnxforge.runtimes import Decoder

_System = Annotated[
    str | None, typer.Option("--system", help="What the model is told before the conversation.")
]
_HELP = "Write a message; /clear starts over, /exit or Ctrl-D leaves."


def chat(
    folder: Artifact,
    system: _System = None,
    max_new_tokens: flags.MaxNewTokens = 512,
    do_sample: flags.DoSample = None,
    temperature: flags.Temperature = None,
    top_k: flags.TopK = None,
    top_p: flags.TopP = None,
    repetition_penalty: flags.RepetitionPenalty = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    max_draft_tokens: flags.MaxDraftTokens = None,
    draft: flags.Draft = None,
    threads: Threads = None,
    cuda_graph: CudaGraph = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Talk with a model that has a chat template. A piped message gets one answer."""
    from onnxforge.compiler.loaded import load_decoder
    from onnxforge.compiler.terminal import piped_text, show

    opening = [{"role": "system", "content": system}] if system else []

    def answer(model: "Decoder", messages: list[dict[str, str]]) -> str:
        with model.stream(
            messages,
            max_new_tokens=max_new_tokens,
            do_sample=do_sample,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=stop,
            max_draft_tokens=max_draft_tokens,
        ) as stream:
            for piece in stream:
                if not as_json:
                    show(piece)
            if not as_json:
                print()
            return stream.result.text

    with load_decoder(folder, threads, draft, cuda_graph) as model:
        if sys.stdin.isatty():
            _converse(model, opening, answer)
            return
        messages = [*opening, {"role": "user", "content": piped_text().strip()}]
        reply = answer(model, messages)
        if as_json:
            print(json.dumps({"messages": [*messages, {"role": "assistant", "content": reply}]}))


def _converse(
    model: "Decoder",
    opening: list[dict[str, str]],
    answer: Callable[["Decoder", list[dict[str, str]]], str],
) -> None:
    """Read a line, answer it, remember both. Ctrl-C ends an answer, not the conversation."""
    print(_HELP, file=sys.stderr)
    messages = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print(file=sys.stderr)
            return
        if line == "/exit":
            return
        if line == "/clear":
            messages = list(opening)
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                messages.append({"role": "assistant", "content": answer(model, messages)})
            except KeyboardInterrupt:
                messages.pop()
                print(file=sys.stderr)
