"""What each way of choosing activation ranges costs, and each source of data to choose them on.

    python bench/calibration_methods.py [--windows 4] [--text some.txt] [--only REGEX]

Every row is static W8A8 where the grid is fine enough and blockwise 8 bits elsewhere: the fused graph,
calibrated, smoothed, calibrated again, quantized. It is held against `cpu-fp32` over two texts: the held-out
half of Python's help topics, and docstrings of its standard library (or `--text`).
"""

import argparse
import re
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from record import record
from weight_methods import FP32, FUSED, Bench, Remembered, docstrings, scored

from onnxforge.compiler.build import build
from onnxforge.compiler.calibration_source import SELF
from onnxforge.compiler.clipping import METHODS
from onnxforge.compiler.eval_text import cut, evaluation_text, sentences
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for

WAYS = [
    *((f"method={method}", None) for method in METHODS),
    ("method=percentile,percentile=99.9999", None),
    ("method=min-max", SELF),
    ("method=min-max,samples=32", None),
]
"""Options of `calibrate`, and the data."""


@dataclass(frozen=True)
class Calibrated(Bench):
    """A bench whose variants are calibrated on this data."""

    calibration: str | None = None

    def session(self, steps: str, name: str) -> tuple[GraphSession, int, float]:
        """As :meth:`Bench.session`."""
        target = replace(
            FP32,
            passes=(*FUSED, *steps.split(), "cleanup"),
            expects={},
            calibration=self.calibration if steps else None,
        )
        start = time.perf_counter()
        into = self.folder / name
        into.mkdir()
        build(self.source, self.exported, target, task_for(self.source), into, name=name)
        seconds = time.perf_counter() - start
        return GraphSession(into), sum(path.stat().st_size for path in (into / "onnx").iterdir()), seconds


def steps(options: str) -> str:
    """The steps between fusion and cleanup, for these options of `calibrate`."""
    return (
        f"calibrate{{{options}}} fold-scales{{alpha=0.65}} calibrate{{{options}}} "
        "insert-qdq{min_sqnr_db=25,skip=lm_head} "
        "quantize-weights{bits=8,block_size=32,accuracy_level=4}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", default="smollm2-135m")
    parser.add_argument("--encoder", default="minilm-l6")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--only", default="", help="a regular expression that the options must match")
    parser.add_argument("--name", default="calibration_methods")
    asked = parser.parse_args()
    texts = [evaluation_text(), evaluation_text(asked.text) if asked.text else docstrings()]
    ways = [way for way in WAYS if re.search(asked.only, " ".join(filter(None, way)))]
    with tempfile.TemporaryDirectory() as temp:
        source = open_model(asked.decoder)
        bench = Calibrated(source, export_model(source), Path(temp))
        session, _, _ = bench.session("", "fp32")
        reference = Remembered(session, Path(temp))
        cuts = [cut(text, session.tokenizer(), window=512, limit=asked.windows) for text in texts]
        rows = []
        for number, (options, data) in enumerate(ways):
            calibrated = replace(bench, calibration=data)
            found = scored(calibrated, steps(options), str(number), reference, [w for w, _ in cuts])
            rows.append((f"{options} {data or ''}".strip(), found))
            print(rows[-1], flush=True)
    cosines = encoder(asked.encoder, [options for options, data in ways if data is None])
    record(
        asked.name,
        f"Choosing activation ranges of {asked.decoder} and {asked.encoder}",
        {
            "steps": steps("..."),
            "protocols": [protocol.sentence() for _, protocol in cuts],
            "rows": [{"options": options, **asdict(row)} for options, row in rows],
            "encoder": {options: {"mean": mean, "min": low} for options, (mean, low) in cosines.items()},
        },
        ("calibrate", "ppl ratio", "", "KL", "", "top-1", "", "build", "cosine, mean", "least"),
        [
            (
                options,
                *(f"{ratio:.4f} ± {error:.4f}" for ratio, error in zip(row.ratios, row.errors, strict=True)),
                *(f"{kl:.4f}" for kl in row.kl),
                *(f"{share:.3f}" for share in row.top1),
                f"{row.seconds:.0f} s",
                *(f"{cosine:.5f}" for cosine in cosines.get(options, ())),
                *([""] * 2 if options not in cosines else []),
            )
            for options, row in rows
        ],
        [
            f"Steps: `{steps('...')}`.",
            *(f"Text {number + 1}: {protocol.sentence()}." for number, (_, protocol) in enumerate(cuts)),
            f"Cosine: {asked.encoder}, 200 sentences.",
        ],
    )
    return 0


def encoder(name: str, chosen: list[str]) -> dict[str, tuple[float, float]]:
    """For each of the options the mean and the least cosine to fp32."""
    found = {}
    with tempfile.TemporaryDirectory() as temp:
        source = open_model(name)
        bench = Bench(source, export_model(source), Path(temp))
        reference, _, _ = bench.session("", "fp32")
        work = batches(sentences(200), reference.tokenizer(), 128)
        for number, options in enumerate(chosen):
            candidate, _, _ = bench.session(steps(options), str(number))
            parity = compare_encoders(reference, candidate, work)
            found[options] = (parity.mean_cosine, parity.min_cosine)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
