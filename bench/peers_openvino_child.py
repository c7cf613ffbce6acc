"""OpenVINO answering the requests of `peers.py`: the plain runtime, or openvino-genai's LLMPipeline.

    python bench/peers_openvino_child.py FOLDER THREADS runtime|pipeline speed|generation|quality

FOLDER is what `optimum-cli export openvino` wrote. Runs in a venv with openvino-genai; nothing of onnxforge
is imported. The pipeline runs as it does by default, on continuous batching with prompts of any length in one
piece, but for its prefix cache, which would answer the second round of a benchmark from the first.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
from peer_process import WAKING_TOKENS, likelihood, serve, timed_tokens

ANY_LENGTH = 1 << 20
DRAFTS, NGRAM = 5, 3
"""num_assistant_tokens and max_ngram_size, as openvino-genai's own prompt lookup sample has them."""


def main() -> None:
    folder, threads, how, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    rng = np.random.default_rng(0)

    def opened() -> Callable[[dict], dict]:
        if how == "runtime":
            model = Stateful(folder, threads)
            if mode == "quality":
                return partial(score, model)
            return lambda request: {"seconds": raw_speed(model, vocabulary, request, rng)}
        if mode == "speed":
            pipeline = open_pipeline(folder, threads, lookup=False)
            return lambda request: {"seconds": pipeline_speed(pipeline, vocabulary, request, rng)}
        pipelines = {lookup: open_pipeline(folder, threads, lookup) for lookup in (False, True)}
        return lambda request: generate(pipelines[request["drafts"]], request)

    serve(opened)


class Stateful:
    """The exported model on the plain runtime; its cache lives inside, as a state."""

    def __init__(self, folder: Path, threads: int) -> None:
        core = ov.Core()
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self._model = core.compile_model(folder / "openvino_model.xml", "CPU", options)
        self._request = self._model.create_infer_request()
        self._past = 0

    def fresh(self) -> None:
        self._request.reset_state()
        self._past = 0

    def read(self, ids: np.ndarray) -> None:
        """Append int64 ``ids`` [S] to the state."""
        count, total = len(ids), self._past + len(ids)
        feeds = {
            "input_ids": ids[None].astype(np.int64),
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(self._past, total, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer(feeds, share_inputs=True)
        self._past += count

    def logits(self) -> np.ndarray:
        """float32 [S, V] of the last ``read``."""
        return self._request.get_tensor("logits").data[0]


def raw_speed(model: Stateful, vocabulary: int, request: dict, rng: np.random.Generator) -> float:
    prompt, depth, generate = request["prompt"], request["depth"], timed_tokens(request)

    def random(count: int) -> np.ndarray:
        return rng.integers(0, vocabulary, count)

    model.fresh()
    model.read(random(max(prompt, WAKING_TOKENS)))
    model.fresh()
    if depth:
        model.read(random(depth))
    tokens, following = random(prompt), random(generate)
    started = time.perf_counter()
    if len(tokens):
        model.read(tokens)
    if request.get("first_token"):
        int(model.logits()[-1].argmax())
    for token in following:
        model.read(token[None])
    return time.perf_counter() - started


def score(model: Stateful, request: dict) -> dict:
    model.fresh()
    model.read(np.asarray(request["ids"]))
    return likelihood(model.logits(), request["ids"], request["first"])


def open_pipeline(folder: Path, threads: int, lookup: bool):  # noqa: ANN201 (named where it is imported)
    import openvino_genai

    schedule = openvino_genai.SchedulerConfig()
    schedule.enable_prefix_caching = False
    schedule.max_num_batched_tokens = ANY_LENGTH
    options = {"INFERENCE_NUM_THREADS": threads, "scheduler_config": schedule}
    return openvino_genai.LLMPipeline(folder, "CPU", **options, **({"prompt_lookup": True} if lookup else {}))


def greedy(tokens: int, eos: list[int]):  # noqa: ANN201
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.do_sample = tokens, False
    config.ignore_eos = not eos
    if eos:
        config.set_eos_token_id(eos[0])
        config.stop_token_ids = set(eos)
    return config


def pipeline_speed(pipeline, vocabulary: int, request: dict, rng: np.random.Generator) -> float:  # noqa: ANN001
    """Of a decode test, the time behind the first token, which reads the prompt."""
    prompt, depth, generate = request["prompt"], request["depth"], timed_tokens(request)

    def timed(count: int, tokens: int) -> tuple[float, float]:
        ids = ov.Tensor(rng.integers(0, vocabulary, (1, count)).astype(np.int64))
        started = time.perf_counter()
        result = pipeline.generate(ids, greedy(tokens, []))
        return time.perf_counter() - started, result.perf_metrics.get_ttft().mean / 1e3

    timed(max(prompt, WAKING_TOKENS), 1)
    if prompt:
        return timed(depth + prompt, 1)[0]
    whole, first = timed(max(depth, 1), generate + 1)
    return whole - first


def generate(pipeline, request: dict) -> dict:  # noqa: ANN001
    config = greedy(request["tokens"], request["eos"])
    if request["drafts"]:
        config.num_assistant_tokens, config.max_ngram_size = DRAFTS, NGRAM
    ids = ov.Tensor(np.asarray([request["ids"]], np.int64))
    started = time.perf_counter()
    result = pipeline.generate(ids, config)
    whole, first = time.perf_counter() - started, result.perf_metrics.get_ttft().mean / 1e3
    found = [int(token) for token in result.tokens[0]]
    return {"first": first, "rest": whole - first, "ids": found, "drafted": 0, "accepted": 0, "steps": 0}


if __name__ == "__main__":
    main()
