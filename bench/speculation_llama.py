"""llama.cpp answering prompts for `speculation.py`, plainly and with prompt lookup (llama-cpp-python's own).

    python bench/speculation_llama.py MODEL.gguf THREADS TYPE DRAFT_TOKENS

TYPE is q8_0, q4_0 or asis: the file is requantized into a temporary one first. One JSON request a line, as
`speculation_genai.py`. Runs in a venv with llama-cpp-python; nothing of onnxforge is imported.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from peer_process import peak_rss

TYPES = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}
CONTEXT = 2048


def main() -> None:
    path, threads, kind, drafts = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the library writes where it likes
    with tempfile.TemporaryDirectory() as temp:
        model = path if kind == "asis" else requantized(path, kind, Path(temp) / "model.gguf")
        started = time.perf_counter()
        # A model that may draft computes the logits of every token: plain runs get one that need not.
        systems = {drafting: opened(model, threads, drafts if drafting else 0) for drafting in (False, True)}
        channel.write(json.dumps({"load_seconds": (time.perf_counter() - started) / 2}) + "\n")
        for line in sys.stdin:
            request = json.loads(line)
            if request.get("finish"):
                channel.write(json.dumps({"peak_rss": peak_rss()}) + "\n")
                return
            channel.write(json.dumps(run(systems[request["drafts"]], request)) + "\n")


def requantized(path: str, kind: str, into: Path) -> str:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = TYPES[kind], True, 0
    failed = llama_cpp.llama_model_quantize(path.encode(), str(into).encode(), params)
    if failed:
        raise SystemExit(f"llama.cpp could not requantize {path} to {kind} ({failed})")
    return str(into)


def opened(
    path: str, threads: int, drafts: int, context: int = CONTEXT, logits: bool = False
) -> llama_cpp.Llama:
    """A model for ``context`` tokens; ``logits``: of every token, not only the last."""
    drafter = LlamaPromptLookupDecoding(num_pred_tokens=drafts) if drafts else None
    return llama_cpp.Llama(
        path,
        n_ctx=context,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        draft_model=drafter,
        logits_all=logits
        or drafts > 0,  # drafting needs them, and makes room for only 512 rows of them by itself
        verbose=False,
    )


def run(model: llama_cpp.Llama, request: dict) -> dict:
    eos, found = set(request["eos"]), []
    model.reset()
    evaluated, steps = model.eval, 0

    def counted(tokens: list[int]) -> None:
        nonlocal steps
        steps += 1
        evaluated(tokens)

    model.eval = counted
    started = first = ended = time.perf_counter()
    try:
        for token in model.generate(request["ids"], temp=0.0, repeat_penalty=1.0):
            found.append(int(token))
            ended = time.perf_counter()
            first = first if len(found) > 1 else ended
            if token in eos or len(found) >= request["tokens"]:
                break
    finally:
        del model.eval
    return {
        "first": first - started,
        "rest": ended - first,
        "ids": found,
        "drafted": 0,
        "accepted": max(len(found) - steps, 0) if request["drafts"] else 0,
        "steps": steps - 1,
    }


if __name__ == "__main__":
    main()
