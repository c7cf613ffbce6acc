"""What removing channels, heads and layers costs: perplexity by unit, share, score and recovery.

    python bench/pruning_quality.py [--windows 8] [--text some.txt] [--only REGEX]

Every row is the fused float graph of `cpu-fp32` with pruning steps behind it, held against `cpu-fp32` itself
over two texts: the held-out half of Python's help topics, and docstrings of its standard library (or
`--text`). Neither was calibrated on; the first is of the calibration text's kind. `removed` counts elements
of weights, embedding included.
"""

import argparse
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from record import record
from weight_methods import Bench, Remembered, docstrings, prepared, scored

from onnxforge.compiler.eval_text import cut, evaluation_text

SHARES = (0.05, 0.1, 0.2, 0.3)
BASELINES = ("random", "magnitude")
OTHERS = ("wanda", "first-order", "surgeon")
"""Scores that are compared at one share only, the same in every layer."""
COMPARED = 0.2
LAYERS = (2, 3, 6, 9)


def steps() -> list[str]:
    """The rows: what `--prune` does and baselines, with the refit and without it; other scores; layers."""
    forms = []
    for unit, fixed in (("mlp", "uniform=true"), ("heads", "unit=query")):
        for share in SHARES:
            spread = ",uniform=false" if unit == "mlp" else ""
            forms.append(f"measure-damage{{share={share},unit={unit}}} prune-{unit}{{share={share}{spread}")
            for score in (*BASELINES, *(OTHERS if share == COMPARED else ())):
                measured = "measure-gradients " if score == "first-order" else ""
                forms.append(f"{measured}prune-{unit}{{share={share},{fixed},score={score}")
    forms += [f"prune-heads{{share=0.34,unit=group,score={score}" for score in (*BASELINES, "surgeon")]
    return [f"{form}{end}}}" for form in forms for end in ("", ",refit=false")] + [
        f"rank-layers{{count={count},by={by}}} prune-layers{{count={count}}}"
        for count in LAYERS
        for by in ("random", "magnitude", "influence", "damage")
    ]


@dataclass(frozen=True)
class Point:
    """One way of pruning. Ratios are to the unpruned model, one per text."""

    steps: str
    removed: float
    """Share of all elements of weights."""
    seconds: float
    ratios: tuple[float, ...]
    errors: tuple[float, ...]
    kl: tuple[float, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--only", default="", help="a regular expression that the steps must match")
    parser.add_argument("--also", action="append", default=[], help="steps of a row more, by spaces")
    parser.add_argument("--name", default="pruning_quality")
    asked = parser.parse_args()
    chosen = [*(row for row in steps() if re.search(asked.only, row)), *asked.also]
    texts = [evaluation_text(), evaluation_text(asked.text) if asked.text else docstrings()]
    points: list[Point] = []
    with tempfile.TemporaryDirectory() as temp:
        bench = prepared(asked.model, Path(temp))
        session, size, _ = bench.session("", "whole")
        reference = Remembered(session, Path(temp))
        cuts = [cut(text, session.tokenizer(), window=512, limit=asked.windows) for text in texts]
        for number, row in enumerate(chosen):
            points.append(_point(bench, row, str(number), reference, size, [found for found, _ in cuts]))
            print(shown(points[-1]), flush=True)
            shutil.rmtree(Path(temp) / str(number))
            _record(asked, points, [protocol.sentence() for _, protocol in cuts])  # a run takes hours
    return 0


def _record(asked: argparse.Namespace, points: list[Point], protocols: list[str]) -> None:
    record(
        asked.name,
        f"Pruning {asked.model}: quality",
        {"protocols": protocols, "rows": [asdict(point) for point in points]},
        ("steps", "removed", "ppl ratio", "", "KL", "", "build"),
        [shown(point) for point in points],
        [f"Text {number + 1}: {protocol}." for number, protocol in enumerate(protocols)],
    )


def _point(bench: Bench, row: str, name: str, reference: Remembered, size: int, texts: list) -> Point:
    found = scored(bench, row, name, reference, texts)
    return Point(row, 1 - found.bytes / size, found.seconds, found.ratios, found.errors, found.kl)


def shown(point: Point) -> tuple[str, ...]:
    """The row in print."""
    ratios = (f"{ratio:.3f} ± {error:.3f}" for ratio, error in zip(point.ratios, point.errors, strict=True))
    kl = (f"{value:.3f}" for value in point.kl)
    return point.steps, f"{point.removed:.1%}", *ratios, *kl, f"{point.seconds:.0f} s"


if __name__ == "__main__":
    raise SystemExit(main())
