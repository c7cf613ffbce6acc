"""Our runtime, or the loop in the graph, answering prompts for `speculation.py`.

    python bench/speculation_ours.py FOLDER THREADS DRAFT_TOKENS runtime|loop

DRAFT_TOKENS 0 takes the artifact's own, or 7 where it has none. One JSON request a line, as
`speculation_genai.py`, with ``mode``: plain, two-rows, drafts, or loop.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from speculation_loop import open_loop, run_loop

from onnxforge.compiler.speed_child import peak_rss
from onnxforge.runtimes import Decoder, load
from onnxforge.runtimes.artifact import read_manifest

DRAFTS = 7


def main() -> None:
    folder, threads, drafts, kind = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    drafts = drafts or draft_tokens(folder)
    started = time.perf_counter()
    answers = runtime(folder, threads, drafts) if kind == "runtime" else loop(folder, threads, drafts)
    print(json.dumps({"load_seconds": time.perf_counter() - started}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("finish"):
            print(json.dumps({"peak_rss": peak_rss()}), flush=True)
            return
        print(json.dumps(answers(request)), flush=True)


def draft_tokens(folder: Path) -> int:
    """What the artifact drafts by default, or would."""
    found = read_manifest(folder).speculation
    return found.max_draft_tokens if found is not None and found.max_draft_tokens else DRAFTS


def runtime(folder: Path, threads: int, drafts: int) -> Callable[[dict], dict]:
    model = load(folder, threads=threads, verify="off")
    assert isinstance(model, Decoder)
    modes = {
        "plain": {"max_draft_tokens": 0, "min_rows": 1},
        "two-rows": {"max_draft_tokens": 0, "min_rows": 2},
        "drafts": {"max_draft_tokens": drafts},
    }

    def answer(request: dict) -> dict:
        result = model.generate(
            request["ids"],
            max_new_tokens=request["tokens"],
            do_sample=False,
            eos_token_id=request["eos"],
            **modes[request["mode"]],
        )
        stats, found = result.stats, result.stats.speculative
        rate = stats.decode_tokens_per_s
        return {
            "first": stats.time_to_first_token_s,
            "rest": (stats.new_tokens - 1) / rate if rate else 0.0,
            "ids": list(result.token_ids),
            "drafted": found.draft_tokens_proposed if found else 0,
            "accepted": found.draft_tokens_accepted if found else 0,
            "steps": found.rounds if found else stats.new_tokens - 1,
        }

    return answer


def loop(folder: Path, threads: int, drafts: int) -> Callable[[dict], dict]:
    session = open_loop(folder, threads)

    def answer(request: dict) -> dict:
        ids, eos = np.array([request["ids"]], np.int64), request["eos"]
        started = time.perf_counter()
        run_loop(session, ids, 1, eos, drafts)  # the prompt and the first token, timed alone
        first = time.perf_counter() - started
        started = time.perf_counter()
        found = run_loop(session, ids, request["tokens"], eos, drafts)
        whole = time.perf_counter() - started
        return {
            "first": first,
            "rest": max(whole - first, 0.0),
            "ids": found.tokens,
            "drafted": found.drafted,
            "accepted": found.accepted,
            "steps": found.steps,
        }

    return answer


if __name__ == "__main__":
    main()
