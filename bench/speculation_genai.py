"""onnxruntime-genai answering prompts for `speculation.py`, plainly and with its own n-gram speculation.

    python bench/speculation_genai.py FOLDER [OPTIONS_AS_JSON]

One JSON request a line: ``ids``, ``tokens``, ``eos`` (stop at these), ``drafts`` (speculate or not). The
options are those of `GeneratorParams.set_speculative_options`. Runs in a venv with onnxruntime-genai; nothing
of onnxforge is imported.
"""

import json
import sys
import time

import onnxruntime_genai as og
from peer_process import answer, peak_rss

DEFAULTS = {"ngram_size": 3, "max_draft_tokens": 8}


def main() -> None:
    options = {**DEFAULTS, **json.loads(sys.argv[2] if len(sys.argv) > 2 else "{}")}
    started = time.perf_counter()
    model = og.Model(sys.argv[1])
    answer({"load_seconds": time.perf_counter() - started})
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("finish"):
            answer({"peak_rss": peak_rss()})
            return
        answer(run(model, request, options=options))


def run(model: og.Model, request: dict, *, options: dict) -> dict:
    ids, count, eos = request["ids"], request["tokens"], set(request["eos"])
    params = og.GeneratorParams(model)
    # Its own end-of-text would stop it where the others go on: a least length holds that off.
    least = {} if eos else {"min_length": len(ids) + count}
    params.set_search_options(do_sample=False, max_length=len(ids) + count + 1, **least)
    if request["drafts"]:
        params.set_speculative_options(**options)
    generator = og.Generator(model, params)
    started = time.perf_counter()
    generator.append_tokens(ids)
    found: list[int] = []
    first = ended = started
    while len(found) < count and not generator.is_done():
        generator.generate_next_token()
        found.append(int(generator.get_next_tokens()[0]))
        ended = time.perf_counter()
        first = first if len(found) > 1 else ended
        if found[-1] in eos:
            break
    stats = generator.get_speculative_stats() if request["drafts"] else {}
    return {
        "first": first - started,
        "rest": ended - first,
        "ids": found,
        "drafted": stats.get("draft_tokens_proposed", 0),
        "accepted": stats.get("draft_tokens_accepted", 0),
        "steps": stats.get("target_forward_passes", 0) + stats.get("standard_fallback_steps", 0),
    }


if __name__ == "__main__":
    main()
