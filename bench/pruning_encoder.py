"""What removing channels and heads costs an encoder: cosine to the unpruned one over 200 sentences.

    python bench/pruning_encoder.py [--model minilm-l6] [--only REGEX]

Every row is `compile MODEL --target cpu-fp32 --prune ... --recover ...`, without its proof, or the same share
chosen by chance or by the size of the weights. The sentences are of the half of Python's help topics that
nothing was calibrated on.
"""

import argparse
import re
import tempfile
from pathlib import Path

import numpy as np
from pruning_speed import with_steps
from record import record

from onnxforge.compiler.build import build
from onnxforge.compiler.eval_text import sentences
from onnxforge.compiler.prune_option import with_pruning
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for
from onnxforge.runtimes import Encoder, load

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32")
MEASURE = "correlate-inputs"


def by(score: str, share: float, refit: bool) -> Target:
    """The FFN pruned by a score that is the same in every layer."""
    step = f"prune-mlp{{share={share},score={score},refit={str(refit).lower()}}}"
    return with_steps(FP32, f"{MEASURE} {step}")


ROWS: dict[str, Target] = {
    f"--prune {units} --recover {recovery}": with_pruning(FP32, units, recovery)
    for units in ("mlp=0.1", "mlp=0.25", "heads=0.1", "heads=0.25")
    for recovery in ("none", "refit", *(("distill=3",) if units == "mlp=0.25" else ()))
} | {
    f"{score}, mlp=0.25{', refit' * refit}": by(score, 0.25, refit)
    for score in ("random", "magnitude", "wanda", "surgeon")
    for refit in (False, True)
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="minilm-l6")
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--only", default="", help="a regular expression that the row must match")
    parser.add_argument("--name", default="pruning_encoder")
    asked = parser.parse_args()
    texts = sentences(asked.sentences)
    source = open_model(asked.model)
    exported = export_model(source)
    with tempfile.TemporaryDirectory() as temp:

        def answers(target: Target, name: str) -> tuple[np.ndarray, int]:
            """float64 [n, width] of length 1, and the bytes of graph and weights."""
            folder = Path(temp) / name
            folder.mkdir()
            build(source, exported, target, task_for(source), folder, name=name)
            with load(folder) as model:
                assert isinstance(model, Encoder)
                found = model.encode(texts, normalize_embeddings=True).astype(np.float64)
            return found, sum(path.stat().st_size for path in (folder / "onnx").iterdir())

        whole, size = answers(FP32, "whole")
        rows = []
        for number, (name, target) in enumerate(ROWS.items()):
            if re.search(asked.only, name):
                found, bytes_ = answers(target, str(number))
                cosine = (found * whole).sum(axis=1)
                rows.append((name, f"{1 - bytes_ / size:.1%}", f"{cosine.mean():.4f}", f"{cosine.min():.4f}"))
                print(rows[-1], flush=True)
    record(
        asked.name,
        f"Pruning {asked.model}: quality",
        {"sentences": len(texts), "rows": rows},
        ("pruned", "removed", "cosine, mean", "least"),
        rows,
        [f"{len(texts)} sentences, distinct, of the evaluation half of Python's help topics."],
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
