"""One artifact in a process of its own, timing what its parent asks for.

Run as ``python -m onnxforge.compiler.speed_child FOLDER THREADS SEED [CUDA_GRAPH]``. It loads the artifact
with the runtime that users have, then speaks one JSON object per line: a first line when it is ready, and for
each request (the fields of a ``SpeedTest``, or ``{"finish": true}``) one answer. Nothing heavy is imported,
so the process's memory is the artifact's.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from onnxforge.compiler.speed_types import SpeedTest
from onnxforge.runtimes import Decoder, Encoder, load

_WAKING_TOKENS = 32
"""Read before every clock, at least."""
_WARM_TOKENS = 8
_BATCH = 16


def main() -> None:
    """Serve requests until told to finish or until the parent is gone."""
    folder, threads, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    cuda_graph = sys.argv[4] == "1" if len(sys.argv) > 4 else None
    answer = _private_stdout()
    started = time.perf_counter()
    with load(folder, threads=threads, verify="off", cuda_graph=cuda_graph) as model:
        answer({"load_seconds": time.perf_counter() - started})
        rng = np.random.default_rng(seed)
        for line in sys.stdin:
            request = json.loads(line)
            if request.pop("finish", False):
                answer({"peak_rss": peak_rss()})
                return
            sentences, first = request.pop("texts", []), request.pop("first_token", False)
            warm = request.pop("warm", False)
            test = SpeedTest(**request)
            if isinstance(model, Encoder):
                answer({"seconds": _encoder(model, sentences)})
            elif first:
                answer({"seconds": _first_token(model, test, rng)})
            else:
                answer({"seconds": _decoder(model, test, rng, warm)})


def peak_rss() -> int:
    """Bytes: the high-water mark of this process's memory, not of the process it was forked from."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _decoder(model: Decoder, test: SpeedTest, rng: np.random.Generator, warm: bool) -> float:
    """Seconds for the timed part of ``test`` on a fresh cache, with random tokens as llama-bench has it.

    A process that waited while others were timed has gone cold (threads asleep, weights out of the caches,
    on some machines out of its page tables). Nobody who runs one model sees that, and the faster a model is
    the more it would count: as many tokens are read before the clock starts.
    """
    waking = min(max(test.prompt, _WAKING_TOKENS), model.manifest.context_length)
    model.new_state(rows=1, capacity=waking).prompt([rng.integers(0, model.vocabulary, waking)])
    state = model.new_state(rows=1, capacity=test.depth + test.prompt + test.generate)
    tokens = rng.integers(0, model.vocabulary, test.depth + test.prompt + test.generate)
    depth, prompt = tokens[: test.depth], tokens[test.depth : test.depth + test.prompt]
    rest = tokens[test.depth + test.prompt :][: _WARM_TOKENS if warm else None]
    if len(depth):
        state.prompt([depth])

    def timed() -> None:
        if len(prompt):
            state.prompt([prompt])
        for token in rest:
            state.step(token.reshape(1, 1))

    return _clock(timed)


def _encoder(model: Encoder, sentences: list[str]) -> float:
    """Seconds to encode ``sentences``, `_BATCH` to a batch, after the same work once to wake the process."""
    features = model.manifest.task == "feature-extraction"
    work = partial(model.encode if features else model.logits, sentences, batch_size=_BATCH)
    work()
    return _clock(work)


def _first_token(model: Decoder, test: SpeedTest, rng: np.random.Generator) -> float:
    """Seconds from the public call to its first token."""
    tokens = [int(t) for t in rng.integers(0, model.vocabulary, test.prompt)]
    return _clock(lambda: model.generate(tokens, max_new_tokens=1, do_sample=False))


def _clock(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _private_stdout() -> Callable[[Mapping[str, float]], None]:
    """A way to answer that no library's print can break: their stdout becomes stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(message: Mapping[str, float]) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return answer


if __name__ == "__main__":
    main()
