"""llama.cpp answering the requests of `peers.py` through llama-cpp-python.

    python bench/peers_llama_child.py MODEL.gguf THREADS speed|generation|quality

Runs in a venv with llama-cpp-python; nothing of onnxforge is imported.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import llama_cpp
import numpy as np
import speculation_llama
from peer_process import WAKING_TOKENS, likelihood, serve, timed_tokens

DRAFTS = 10
"""num_pred_tokens of its prompt lookup: the library's own default."""
CONTEXT = 4096
WINDOW = 2048


def main() -> None:
    path, threads, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]

    def opened() -> Callable[[dict], dict]:
        rng = np.random.default_rng(0)
        if mode == "speed":
            model = speculation_llama.opened(path, threads, 0, CONTEXT)
            return lambda request: {"seconds": speed(model, request, rng)}
        if mode == "quality":
            return partial(score, speculation_llama.opened(path, threads, 0, WINDOW, logits=True))
        # A model that may draft computes the logits of every token: plain runs get one that need not.
        plain, drafting = (speculation_llama.opened(path, threads, drafts) for drafts in (0, DRAFTS))
        return lambda request: speculation_llama.run(drafting if request["drafts"] else plain, request)

    serve(opened)


def speed(model: llama_cpp.Llama, request: dict, rng: np.random.Generator) -> float:
    prompt, depth, generate = request["prompt"], request["depth"], timed_tokens(request)
    vocabulary = model.n_vocab()

    def random(count: int) -> list[int]:
        return rng.integers(0, vocabulary, count).tolist()

    model.reset()
    model.eval(random(max(prompt, WAKING_TOKENS)))
    model.reset()
    if depth:
        model.eval(random(depth))
    tokens, following = random(prompt), random(generate)
    started = time.perf_counter()
    if tokens:
        model.eval(tokens)
    if request.get("first_token"):
        model.sample(temp=0.0, repeat_penalty=1.0)
    for token in following:
        model.eval([token])
    return time.perf_counter() - started


def score(model: llama_cpp.Llama, request: dict) -> dict:
    model.reset()
    model.eval(request["ids"])
    return likelihood(model.scores[: len(request["ids"])], request["ids"], request["first"])


if __name__ == "__main__":
    main()
