"""Does a row's answer depend on the rows beside it? One step of eight tokens against steps of one and of two.

    python bench/row_independence.py DIR [DIR ...] [--positions 2000]

Speculative decoding verifies several drafted tokens in one step, and is lossless only where that step says
what shorter steps would have said. All forms read the same text over a cache of the same tokens: eight tokens
at once, one token at a time, and one token at a time beside a second row that is a wrong guess and is taken
back. Shown are the largest difference of the logits, how often the likeliest token differs, and how near the
two likeliest were where it does.
"""

import argparse
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from record import record

from onnxforge.compiler.eval_text import cut, evaluation_text
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.runtimes.decoder_state import DecoderState, new_state

TOGETHER = 8
WINDOW = 512
PROMPT = 64


@dataclass
class Difference:
    """From the step of eight: the largest of any logit, and the gap of the two likeliest at every flip."""

    largest: float = 0.0
    gaps: list[float] = field(default_factory=list)

    def add(self, together: np.ndarray, apart: np.ndarray) -> None:
        """Count some rows, both float32 [n, V]."""
        self.largest = max(self.largest, float(np.abs(together - apart).max()))
        for row in np.flatnonzero(together.argmax(axis=-1) != apart.argmax(axis=-1)):
            best = np.sort(apart[row])[-2:]
            self.gaps.append(float(best[1] - best[0]))


@dataclass
class Row:
    """One artifact."""

    target: str
    positions: int = 0
    scale: float = 0.0
    """The largest logit."""
    one: Difference = field(default_factory=Difference)
    """Against steps of one row."""
    two: Difference = field(default_factory=Difference)
    """Against steps of two rows, of which the second is taken back."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--positions", type=int, default=2000)
    parser.add_argument("--name", default="row_independence")
    asked = parser.parse_args()
    rows = [independence(folder, asked.positions) for folder in asked.artifacts]
    record(
        asked.name,
        f"A step of {TOGETHER} tokens against {TOGETHER} steps",
        {"rows": [asdict(row) for row in rows]},
        (
            "target",
            "positions",
            "against two rows: largest difference",
            "top token differs",
            "against one row: largest difference",
            "of the largest logit",
            "top token differs",
            "largest gap where it does",
        ),
        [shown(row) for row in rows],
        [f"Prompts of {PROMPT} tokens, windows of {WINDOW}; a gap is between the two likeliest logits."],
    )
    return 0


def independence(folder: Path, positions: int, provider: str | None = None) -> Row:
    """One artifact, read in all three ways, on its provider or another one."""
    session = GraphSession(folder, provider)
    graph, row = session.decoder_graph(), Row(session.manifest.target)
    windows, _ = cut(evaluation_text(), session.tokenizer(), window=WINDOW, limit=1 + positions // 400)
    for window in windows:
        ids = window.ids[0]
        many, one, two = (new_state(graph, 1, WINDOW + 2) for _ in range(3))
        for state in (many, one, two):
            state.prompt([ids[:PROMPT]])
        for start in range(PROMPT, len(ids) - TOGETHER + 1, TOGETHER):
            tokens = ids[start : start + TOGETHER]
            together = many.step(tokens[None])[0].copy()
            alone = np.stack([one.step(token.reshape(1, 1))[0, -1].copy() for token in tokens])
            row.one.add(together, alone)
            row.two.add(together, np.stack([beside_a_guess(two, int(token)) for token in tokens]))
            row.scale = max(row.scale, float(np.abs(alone).max()))
            row.positions += TOGETHER
            if row.positions >= positions:
                return row
    return row


def beside_a_guess(state: DecoderState, token: int) -> np.ndarray:
    """float32 [V] after ``token``, read beside a second row that holds another token."""
    logits = state.step(np.array([[token, token - 1 if token else 1]]))[0, 0].copy()
    state.rewind(1)
    found: np.ndarray = logits
    return found


def shown(row: Row) -> tuple[str, ...]:
    """The row in print."""
    return (
        row.target,
        str(row.positions),
        f"{row.two.largest:.2g}",
        str(len(row.two.gaps)),
        f"{row.one.largest:.2g}",
        f"{row.one.largest / row.scale:.2g}",
        str(len(row.one.gaps)),
        f"{max(row.one.gaps):.2g}" if row.one.gaps else "",
    )


if __name__ == "__main__":
    raise SystemExit(main())
