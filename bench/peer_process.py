"""What every timed process of a peer tells its parent; runs in the peers' venv, so nothing of onnxforge."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np

WAKING_TOKENS = 32
"""Read before every clock, at least: as `onnxforge.compiler.speed_child` does."""
WARM_TOKENS = 8
_ROWS = 64


def peak_rss() -> int:
    """Bytes: the high-water mark of this process's memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def answer(message: dict) -> None:
    """One line of JSON to the parent."""
    print(json.dumps(message), flush=True)


def serve(opened: Callable[[], Callable[[dict], dict]]) -> None:
    """Time ``opened``, which loads the model and returns what answers a request; then answer until the end.

    What libraries print goes to stderr.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    started = time.perf_counter()
    answers = opened()
    channel.write(json.dumps({"load_seconds": time.perf_counter() - started}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("finish"):
            channel.write(json.dumps({"peak_rss": peak_rss()}) + "\n")
            return
        channel.write(json.dumps(answers(request)) + "\n")


def timed_tokens(request: dict) -> int:
    """How many tokens a speed test generates; few when it only warms up."""
    generate = request["generate"]
    return min(generate, WARM_TOKENS) if request.get("warm") else generate


def likelihood(logits: np.ndarray, ids: list[int], first: int) -> dict:
    """The negative log-likelihood, in nats, of ``ids`` [S] from position ``first`` on; ``logits`` [S, V]."""
    total = 0.0
    for rows, targets in _chunks(ids, first):
        wide = np.asarray(logits[rows], np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
        total -= float(np.take_along_axis(wide, targets[:, None], axis=-1).sum())
    return {"nll": total, "tokens": len(ids) - first}


def _chunks(ids: list[int], first: int) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(first, len(ids), _ROWS):
        stop = min(start + _ROWS, len(ids))
        yield slice(start - 1, stop - 1), np.asarray(ids[start:stop], np.int64)
