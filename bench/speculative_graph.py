"""What the Loop costs: `onnx/model_spec.onnx` against a host loop over a shared cache, the same runs in both.

    python bench/speculative_graph.py DIR [DIR ...] [--rounds 5] [--new 64]

Both decode greedily, two rows a step without drafts, and with up to eight n-gram drafts by one rule; their
tokens and counts are compared every time. Prompts are cut from Python's help topics. Shown is the time behind
the first token, (all tokens) - (one token), medians over rounds that take turns: both read the prompt alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from record import record
from speculation_loop import open_loop, run_loop

from onnxforge.compiler.eval_text import evaluation_text
from onnxforge.compiler.proof_session import threads
from onnxforge.runtimes import Decoder, load

LENGTHS, DRAFTS = (64, 300, 1000), (0, 8)
Said = tuple[list[int], int, int]
Generate = Callable[[list[int], int, int], Said]


def guesses(tokens: list[int], count: int) -> tuple[int, list[int]]:
    """The latest longest match (3 at most) of the end of ``tokens``: its length, what follows, repeated."""
    text = np.array([-1, -1, -1, *tokens])
    size = len(tokens)
    equal = [text[2 - n : size + 2 - n] == text[size + 2 - n] for n in range(3)]
    score = equal[0].astype(int) + (equal[0] & equal[1]) + (equal[0] & equal[1] & equal[2])
    best = size - 1 - int(score[::-1].argmax())
    return int(score[best]), [tokens[best + i % (size - best)] for i in range(count)]


def host(model: Decoder) -> Generate:
    """The graph's rule, with the runtime's state: shared cache, one session run a step."""

    def generate(prompt: list[int], new: int, drafts: int) -> Said:
        state = model.new_state(rows=1, capacity=len(prompt) + new + 1, min_rows=2)
        tokens, wish, limit = list(prompt), min(4, drafts), len(prompt) + new
        tokens.append(int(state.prompt([np.array(prompt, np.int64)])[0].argmax()))
        steps, accepted = 1, 0
        while len(tokens) < limit:
            match, _ = guesses(tokens, 0)
            trusted = (1, 1, 3, max(wish, 7))[match]
            count = min(trusted, drafts, limit - len(tokens) - 1, len(tokens))
            fed = guesses(tokens, max(count, 1))[1]
            best = state.step(np.array([[tokens[-1], *fed]], np.int64))[0].argmax(axis=-1).tolist()
            hits = next((i for i in range(count) if best[i] != fed[i]), count)
            state.rewind(len(fed) - hits)
            tokens += best[: hits + 1]
            steps, accepted = steps + 1, accepted + hits
            if count:
                wish = min(drafts, max(2 * wish, 1) if hits == count else hits + 1)
        return tokens, steps, accepted

    return generate


def graph(folder: Path, provider: str | None = None) -> Generate:
    """One run of the derived graph, on the artifact's provider or another one."""
    session = open_loop(folder, threads(), provider)

    def generate(prompt: list[int], new: int, drafts: int) -> Said:
        found = run_loop(session, np.array([prompt], np.int64), new, [], drafts)
        return [*prompt, *found.tokens], found.steps, found.accepted

    return generate


def behind_first(generate: Generate, prompt: list[int], new: int, drafts: int) -> tuple[float, Said]:
    """Seconds behind the first token, and what was said."""
    started = time.perf_counter()
    generate(prompt, 1, drafts)
    middle = time.perf_counter()
    said = generate(prompt, new, drafts)
    return time.perf_counter() - middle - (middle - started), said


def measured(folder: Path, rounds: int, new: int) -> list[dict[str, object]]:
    """One line per prompt length and number of drafts."""
    lines: list[dict[str, object]] = []
    with load(folder) as model:
        text = model.prompt_tokens(evaluation_text().text[:20_000])
        ways = {"host": host(model), "graph": graph(folder)}
        for length in LENGTHS:
            prompt = text[:length]
            for drafts in DRAFTS:
                times: dict[str, list[float]] = {name: [] for name in ways}
                for turn in range(rounds + 1):
                    results = {}
                    for name, generate in sorted(ways.items(), reverse=turn % 2 == 1):
                        seconds, results[name] = behind_first(generate, prompt, new, drafts)
                        if turn:  # the first round wakes both
                            times[name].append(seconds)
                    if results["host"] != results["graph"]:
                        raise SystemExit(f"{folder}, {length} tokens, {drafts} drafts: {results}")
                middle = {name: statistics.median(taken) for name, taken in times.items()}
                ratio = statistics.median(h / g for h, g in zip(times["host"], times["graph"], strict=True))
                steps = results["graph"][1] - 1
                per_step = {f"{name}_ms": 1000 * taken / steps for name, taken in middle.items()}
                lines.append(
                    {"artifact": folder.name, "prompt": length, "drafts": drafts, "steps": steps}
                    | per_step
                    | {"speed_ratio": ratio, "best_ratio": min(times["host"]) / min(times["graph"])}
                )
                print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new", type=int, default=64)
    asked = parser.parse_args()
    lines = [line for folder in asked.artifacts for line in measured(folder, asked.rounds, asked.new)]
    header = (
        "artifact",
        "prompt",
        "drafts",
        "steps",
        "host, ms",
        "graph, ms",
        "graph/host speed",
        "of the best",
    )
    rows = [
        [f"{value:.2f}" if isinstance(value, float) else str(value) for value in line.values()]
        for line in lines
    ]
    record(
        "speculative_graph",
        "One run of onnx/model_spec.onnx against a host loop, per step behind the first token",
        {"lines": lines, "new_tokens": asked.new, "rounds": asked.rounds},
        header,
        rows,
        ["Tokens and counts were equal in every run. Speed is host time over graph time: more is better."],
    )


if __name__ == "__main__":
    main()
