"""An onnxruntime-genai model answering the requests of `onnxforge.compiler.speed_child`. Run by `peers.py`.

    python bench/genai_child.py FOLDER SEED

Runs in a venv with onnxruntime-genai and numpy; nothing of onnxforge is imported.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from peer_process import answer, peak_rss

WAKING_TOKENS = 32
WARM_TOKENS = 8


def main() -> None:
    started = time.perf_counter()
    model = og.Model(sys.argv[1])
    answer({"load_seconds": time.perf_counter() - started})
    vocabulary = json.loads(Path(sys.argv[1], "genai_config.json").read_text())["model"]["vocab_size"]
    rng = np.random.default_rng(int(sys.argv[2]))
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("finish"):
            answer({"peak_rss": peak_rss()})
            return
        answer({"seconds": run(model, vocabulary, request, rng)})


def run(model: og.Model, vocabulary: int, request: dict, rng: np.random.Generator) -> float:
    prompt, depth = request["prompt"], request["depth"]
    generate = min(request["generate"], WARM_TOKENS) if request.get("warm") else request["generate"]
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


if __name__ == "__main__":
    main()
