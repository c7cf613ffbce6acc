"""An onnxruntime-genai model answering the requests of `peers.py`.

    python bench/peers_genai_child.py FOLDER speed|generation|quality

Runs in a venv with onnxruntime-genai and numpy; nothing of onnxforge is imported. Its number of threads
stands in the folder's genai_config.json.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
import speculation_genai
from peer_process import WAKING_TOKENS, likelihood, serve, timed_tokens


def main() -> None:
    folder, mode = sys.argv[1], sys.argv[2]

    def opened() -> Callable[[dict], dict]:
        model = og.Model(folder)
        og.Tokenizer(model)  # no text can be answered without
        vocabulary = json.loads(Path(folder, "genai_config.json").read_text())["model"]["vocab_size"]
        rng = np.random.default_rng(0)
        modes = {
            "speed": lambda request: {"seconds": speed(model, vocabulary, request, rng)},
            "generation": partial(speculation_genai.run, model, options=speculation_genai.DEFAULTS),
            "quality": partial(score, model),
        }
        return modes[mode]

    serve(opened)


def speed(model: og.Model, vocabulary: int, request: dict, rng: np.random.Generator) -> float:
    prompt, depth, generate = request["prompt"], request["depth"], timed_tokens(request)
    wake(model, vocabulary, max(prompt, WAKING_TOKENS), rng)
    total = depth + prompt + generate + 2
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=total, min_length=total)
    generator = og.Generator(model, params)
    tokens = [int(t) for t in rng.integers(0, vocabulary, depth + prompt or 1)]
    if prompt:
        if depth:
            generator.append_tokens(tokens[:depth])
        started = time.perf_counter()
        generator.append_tokens(tokens[depth:])
        if request.get("first_token"):
            generator.generate_next_token()
        return time.perf_counter() - started
    generator.append_tokens(tokens)
    generator.generate_next_token()  # samples from the prompt's logits: no step of the model yet
    started = time.perf_counter()
    for _ in range(generate):
        generator.generate_next_token()
    return time.perf_counter() - started


def wake(model: og.Model, vocabulary: int, count: int, rng: np.random.Generator) -> None:
    """Read as many tokens before the clock starts, as `speed_child` does."""
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=count + 2)
    og.Generator(model, params).append_tokens([int(t) for t in rng.integers(0, vocabulary, count)])


def score(model: og.Model, request: dict) -> dict:
    params = og.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(request["ids"]) + 2)
    generator = og.Generator(model, params)
    generator.append_tokens(request["ids"])
    return likelihood(np.asarray(generator.get_output("logits"))[0], request["ids"], request["first"])


if __name__ == "__main__":
    main()
