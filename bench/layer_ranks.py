"""Which layers can go: the orders of `rank-layers` compared, by what the model is without the first of each.

    python bench/layer_ranks.py [--counts 2,3,6,9] [--windows 8] [--only REGEX]

The fused float graph of the decoder, every layer with a switch, over two texts: the held-out half of Python's
help topics, and docstrings of its standard library. Orders are measured on the default calibration text.
"""

import argparse
import re
import time
from dataclasses import asdict, dataclass

import numpy as np
from record import record
from weight_methods import FUSED, docstrings

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibration_data import CalibrationBatch, attach
from onnxforge.compiler.calibration_tokens import tokenizer_of
from onnxforge.compiler.eval_text import Window, cut, evaluation_text
from onnxforge.compiler.layer_switches import layer_session
from onnxforge.compiler.perplexity import perplexity
from onnxforge.compiler.sensitivity import SwitchSession
from onnxforge.models import export_model, open_model
from onnxforge.passes import notes
from onnxforge.passes.layer_ranks import LAYER_RANK
from onnxforge.passes.layers import LayerUnit, find_layers, spans_of

ORDERS = (
    "rank-layers{by=damage,samples=8}",
    "rank-layers{by=damage,samples=2}",
    "rank-layers{by=influence,samples=8}",
    "rank-layers{by=magnitude}",
    *(f"rank-layers{{by=random,seed={seed}}}" for seed in range(3)),
)


@dataclass
class Without:
    """The model less some layers, as a scorer."""

    session: SwitchSession
    layers: int
    gone: tuple[int, ...] = ()

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [S, V]."""
        choice = np.zeros((1, self.layers), dtype=bool)
        choice[0, list(self.gone)] = True
        found: np.ndarray = next(self.session.answers(choice, CalibrationBatch(ids, np.ones_like(ids))))[0, 0]
        return found


@dataclass(frozen=True)
class Row:
    """The first ``count`` layers of an order removed: perplexity ratios to the whole model, one per text."""

    order: str
    count: int
    gone: list[int]
    ratios: list[float]
    seconds: float
    """That the order took, for the most layers."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", default="smollm2-135m")
    parser.add_argument("--counts", default="2,3,6,9")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--unit", default="layer")
    parser.add_argument("--only", default="", help="a regular expression that the orders must match")
    parser.add_argument("--name", default="layer_ranks")
    asked = parser.parse_args()
    counts = [int(word) for word in asked.counts.split(",")]
    source = open_model(asked.decoder)
    model = export_model(source)
    attach(model, source)
    for step in pipeline.parse(FUSED):
        step(model)
    tokenizer = tokenizer_of(source)
    texts = (evaluation_text(), docstrings())
    cuts = [cut(text, tokenizer, window=512, limit=asked.windows) for text in texts]
    work = [windows for windows, _ in cuts]
    rows: list[Row] = []
    with layer_session(model, LayerUnit(asked.unit)) as session:
        layers = len(spans_of(find_layers(model.graph), LayerUnit(asked.unit)))
        scorer = Without(session, layers)
        whole = scores(scorer, work)
        for text in (text for text in ORDERS if re.search(asked.only, text)):
            options = f"count={max(counts)},unit={asked.unit},"
            step = pipeline.parse_pass(text.replace("{", "{" + options))
            start = time.perf_counter()
            with notes.listen() as seen:
                step(model)
            seconds = time.perf_counter() - start
            order = [int(note.where.split()[1]) for note in seen if note.what == LAYER_RANK]
            for count in counts:
                scorer.gone = tuple(order[:count])
                ratios = [a / b for a, b in zip(scores(scorer, work), whole, strict=True)]
                rows.append(Row(text, count, order[:count], ratios, seconds))
                print(rows[-1], flush=True)
    record(
        asked.name,
        f"Which {asked.unit}s of {asked.decoder} can go: perplexity ratios",
        {
            "protocols": [said.sentence() for _, said in cuts],
            "whole": whole,
            "rows": [asdict(row) for row in rows],
        },
        ("order", "removed", "which, in order", "text 1", "text 2", "measured in"),
        [
            (
                row.order,
                f"{row.count} of {layers}",
                "+".join(map(str, row.gone)),
                *(f"{ratio:.3f}" for ratio in row.ratios),
                f"{row.seconds:.0f} s",
            )
            for row in rows
        ],
        [
            f"Text {n + 1}: {said.sentence()}. The whole model: {whole[n]:.3f}."
            for n, (_, said) in enumerate(cuts)
        ],
    )
    return 0


def scores(model: Without, texts: list[list[Window]]) -> list[float]:
    """The perplexity of each text."""
    return [perplexity(model, windows).value for windows in texts]


if __name__ == "__main__":
    raise SystemExit(main())
