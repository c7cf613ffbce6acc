"""What each form of `insert-qdq` costs an encoder: cosine to `cpu-fp32` on two texts, bytes, what fused.

    python bench/qdq_forms.py [--encoder minilm-l6] [--samples 16]

Every row is the `cpu-fp32` pipeline with a calibration and one `insert-qdq` behind it; `min_sqnr_db=0` where
nothing is to stay float. The last row is `trt-int8`, as the CPU computes it.
"""

import argparse
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from record import record
from weight_methods import FP32, FUSED, docstrings

from onnxforge.compiler.build import build
from onnxforge.compiler.eval_text import evaluation_text, sentences
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.quantizer_report import report_quantizers
from onnxforge.compiler.target_file import find_target
from onnxforge.compiler.targets import CPU, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for

INT8 = "activations=int8,symmetric_activations=true"
FORMS = (
    "min_sqnr_db=0",
    "",
    "reduce_range=true",
    "granularity=tensor",
    "symmetric=false",
    INT8,
    "dynamic=true,min_sqnr_db=0",
    "activations=none",
    "activations=none,granularity=block",
    "activations=none,granularity=block,weights=uint4,symmetric=false",
    "activations=none,granularity=block,embeddings=true",
)


@dataclass(frozen=True)
class Row:
    """One form. Cosines of pooled sentences, one pair for each text."""

    steps: str
    bytes: int
    kernels: str
    mean: tuple[float, ...]
    least: tuple[float, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="minilm-l6")
    parser.add_argument("--samples", type=int, default=16)
    asked = parser.parse_args()
    source = open_model(asked.encoder)
    exported, task = export_model(source), task_for(source)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temp:

        def made(target: Target, name: str) -> tuple[GraphSession, int, str]:
            into = Path(temp) / name
            into.mkdir()
            built = build(source, exported, target, task, into, name=name)
            found = report_quantizers(built.model, into / built.manifest.graph, built.manifest, CPU)
            kernels = ", ".join(f"{n} {kernel}" for kernel, n in found.kernels.items()) if found else ""
            size = sum(path.stat().st_size for path in (into / "onnx").iterdir())
            return GraphSession(into, CPU), size, kernels

        reference, size, _ = made(replace(FP32, expects={}), "fp32")
        texts = [
            batches(sentences(200, text), reference.tokenizer(), 128)
            for text in (evaluation_text(), docstrings())
        ]
        targets = [
            replace(
                FP32,
                passes=(*FUSED, f"calibrate{{samples={asked.samples}}}", f"insert-qdq{{{form}}}", "cleanup"),
                expects={},
            )
            for form in FORMS
        ]
        for number, target in enumerate((*targets, find_target("trt-int8"))):
            candidate, count, kernels = made(target, str(number))
            parities = [compare_encoders(reference, candidate, work) for work in texts]
            label = target.passes[-2] if target.name == FP32.name else target.name
            rows.append(
                Row(
                    label,
                    count,
                    kernels,
                    tuple(parity.mean_cosine for parity in parities),
                    tuple(parity.min_cosine for parity in parities),
                )
            )
            print(shown(rows[-1], size), flush=True)
    record(
        "qdq_forms",
        f"Forms of QuantizeLinear and DequantizeLinear on {asked.encoder} ({size / 1e6:,.0f} MB in fp32)",
        {"fp32_bytes": size, "rows": [asdict(row) for row in rows]},
        ("steps", "of fp32", "cosine, topics", "least", "cosine, docstrings", "least", "integer products"),
        [shown(row, size) for row in rows],
        ["200 sentences of each text; calibration on the other half of the help topics."],
    )
    return 0


def shown(row: Row, size: int) -> tuple[str, ...]:
    """The row in print."""
    pairs = (f"{value:.5f}" for pair in zip(row.mean, row.least, strict=True) for value in pair)
    return (row.steps, f"{row.bytes / size:.3f}x", *pairs, row.kernels)


if __name__ == "__main__":
    raise SystemExit(main())
