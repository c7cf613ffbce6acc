"""Does a row's answer depend on the rows beside it? One step of eight tokens against eight steps of one.

    python bench/row_independence.py DIR [DIR ...] [--positions 2000]

Speculative decoding verifies several drafted tokens in one step, and is lossless only where that step says
what single steps would have said. Both forms read the same text over a cache of the same tokens; the largest
difference of the logits, how often the likeliest token differs, and how near the two were where it does.
"""

import argparse
from pathlib import Path

import numpy as np
from record import record

from onnxforge.compiler.eval_text import cut, evaluation_text
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.runtimes.decoder_state import new_state

TOGETHER = 8
WINDOW = 512
PROMPT = 64


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--name", default="row_independence")
    asked = parser.parse_args()
    rows = [(folder, *independence(folder, asked.positions)) for folder in asked.artifacts]
    record(
        asked.name,
        f"A step of {TOGETHER} tokens against {TOGETHER} steps of one",
        {
            "rows": [
                {"target": target, "positions": count, "largest": largest, "scale": scale, "gaps": gaps}
                for _, target, count, largest, scale, gaps in rows
            ]
        },
        ("target", "positions", "largest difference", "of the largest logit", "top token differs", "gaps"),
        [
            (
                target,
                str(count),
                f"{largest:.2g}",
                f"{largest / scale:.2g}",
                str(len(gaps)),
                ", ".join(f"{gap:.2g}" for gap in gaps),
            )
            for _, target, count, largest, scale, gaps in rows
        ],
        [f"Prompts of {PROMPT} tokens, windows of {WINDOW}; a gap is between the two likeliest logits."],
    )
    return 0


def independence(folder: Path, positions: int) -> tuple[str, int, float, float, list[float]]:
    """Target, positions compared, largest difference, largest logit, and the logit gap at every flip."""
    session = GraphSession(folder)
    graph = session.decoder_graph()
    windows, _ = cut(evaluation_text(), session.tokenizer(), window=WINDOW, limit=1 + positions // 400)
    count, largest, scale = 0, 0.0, 0.0
    gaps: list[float] = []
    for window in windows:
        ids = window.ids[0]
        many, single = (new_state(graph, 1, WINDOW) for _ in range(2))
        many.prompt([ids[:PROMPT]])
        single.prompt([ids[:PROMPT]])
        for start in range(PROMPT, len(ids) - TOGETHER + 1, TOGETHER):
            tokens = ids[start : start + TOGETHER]
            together = many.step(tokens[None])[0].copy()
            apart = np.stack([single.step(token.reshape(1, 1))[0, -1].copy() for token in tokens])
            largest = max(largest, float(np.abs(together - apart).max()))
            scale = max(scale, float(np.abs(apart).max()))
            flipped = np.flatnonzero(together.argmax(axis=-1) != apart.argmax(axis=-1))
            for row in flipped:
                best = np.sort(apart[row])[-2:]
                gaps.append(float(best[1] - best[0]))
            count += TOGETHER
            if count >= positions:
                return session.manifest.target, count, largest, scale, gaps
    return session.manifest.target, count, largest, scale, gaps


if __name__ == "__main__":
    raise SystemExit(main())
