"""Do drafts change the text? 40 prompts, 128 tokens each, greedy, decoded four ways.

    python bench/speculation_identity.py DIR [DIR ...] [--drafts 1,4,7] [--quick]

The reference is our runtime without drafts and with at least two rows a step. Token for token it has to be
what our runtime gives with drafts, for every draft length asked, and what the loop in the graph gives
(`onnx/model_spec.onnx`; left out with a note where it is absent). End-of-text is ignored, so that every
answer has its 128 tokens. Exit code 1 where any of these differ.

Steps of one row take another kernel inside the attention. How many answers they give alike is counted, and
where the first difference is: the reference's logit gap between its own token and the other one. In fp32
anything but a near-tie (below 1e-3) would be an error; integer grids amplify a rounding of 1e-7 to whole
logits.
"""

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from record import record
from speculation_loop import LOOP, open_loop, run_loop
from speculation_prompts import bench_prompts

from onnxforge.compiler.proof_session import threads
from onnxforge.runtimes import Decoder, load

NEAR_TIE = 1e-3


@dataclass(frozen=True)
class Difference:
    """The first token that differs from the reference's."""

    way: str
    prompt: str
    at: int
    gap: float
    """The reference's logit of its own token less that of the other."""

    def text(self) -> str:
        tie = " (near-tie)" if abs(self.gap) < NEAR_TIE else ""
        return f"{self.way}, {self.prompt}: parted at token {self.at}, logit gap {self.gap:.2g}{tie}"


@dataclass(frozen=True)
class Compared:
    """One artifact: how many answers of each way are the reference's."""

    target: str
    prompts: int
    same: dict[str, int]
    differences: list[Difference]
    accepted: int
    tokens: int

    @property
    def exact(self) -> bool:
        return all(count == self.prompts for way, count in self.same.items() if way != ONE_ROW)


ONE_ROW, LOOP_NAME = "one row a step", "in-graph loop"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--drafts", default="1,4,7", help="of the runtime; the loop takes the last one")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--quick", action="store_true", help="8 prompts, 48 tokens")
    parser.add_argument("--name", default="speculation_identity")
    asked = parser.parse_args()
    lengths = [int(word) for word in asked.drafts.split(",")]
    found = [compare(f, lengths, 48 if asked.quick else asked.tokens, asked.quick) for f in asked.artifacts]
    write(asked.name, found)
    return 0 if all(result.exact for result in found) else 1


def compare(folder: Path, lengths: list[int], tokens: int, quick: bool) -> Compared:
    same: dict[str, int] = {}
    differences: list[Difference] = []
    accepted = 0
    prompts = bench_prompts(1 if quick else None)
    loop = open_loop(folder, threads()) if (folder / LOOP).is_file() else None
    if loop is None:
        print(f"note: {folder} has no {LOOP}; the in-graph loop is left out", file=sys.stderr)
    with load(folder, threads=threads()) as model:
        assert isinstance(model, Decoder)
        for place, prompt in enumerate(prompts):
            ids = model.prompt_tokens(prompt.messages())
            reference = answer(model, ids, tokens, max_draft_tokens=0, min_rows=2)
            ways = {ONE_ROW: answer(model, ids, tokens, max_draft_tokens=0, min_rows=1)}
            for length in lengths:
                ways[f"runtime, {length} drafted"] = answer(model, ids, tokens, max_draft_tokens=length)
            if loop is not None:
                found = run_loop(loop, np.array([ids], np.int64), tokens, [], lengths[-1])
                ways[LOOP_NAME] = found.tokens
                accepted += found.accepted
            for way, told in ways.items():
                same[way] = same.get(way, 0) + (told == reference)
                if told != reference:
                    differences.append(difference(model, way, prompt.name, ids, reference, told))
            print(f"\r{folder.name}: {place + 1}/{len(prompts)}", end="", file=sys.stderr)
        print(file=sys.stderr)
        target = model.manifest.target
    return Compared(target, len(prompts), same, differences, accepted, tokens)


def answer(model: Decoder, ids: list[int], tokens: int, **drafting: int) -> list[int]:
    result = model.generate(ids, max_new_tokens=tokens, do_sample=False, eos_token_id=(), **drafting)
    return list(result.token_ids)


def difference(
    model: Decoder, way: str, prompt: str, ids: list[int], reference: list[int], told: list[int]
) -> Difference:
    shorter = min(len(reference), len(told))
    at = next((i for i in range(shorter) if reference[i] != told[i]), shorter)
    if at == shorter:
        return Difference(way, prompt, at, float("nan"))
    state = model.new_state(rows=1, capacity=len(ids) + at + 2, min_rows=2)
    logits = state.prompt([np.array(ids + reference[:at], np.int64)])[0]
    return Difference(way, prompt, at, float(logits[reference[at]] - logits[told[at]]))


def write(name: str, found: list[Compared]) -> None:
    ways = list(dict.fromkeys(way for result in found for way in result.same))
    rows = [
        (r.target, *(f"{r.same[w]} of {r.prompts}" if w in r.same else "absent" for w in ways)) for r in found
    ]
    flips = [f"- {result.target}, {d.text()}" for result in found for d in result.differences]
    record(
        name,
        "The same tokens as plain greedy decoding with two rows a step",
        {"artifacts": [asdict(result) for result in found]},
        ("target", *ways),
        rows,
        [
            f"{found[0].prompts} prompts, {found[0].tokens} greedy tokens each, end-of-text ignored. Every "
            "first difference, with the gap of the reference's logits there:\n",
            "\n".join(flips) if flips else "none.",
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
