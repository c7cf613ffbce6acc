"""What each way of rounding weights costs: perplexity, KL, top-1 and bytes, method by bits by block.

    python bench/weight_methods.py [--windows 8] [--text some.txt] [--only REGEX]

Every row is the `cpu-fp32` pipeline with other steps at its end, held against `cpu-fp32` itself over two
texts: the held-out half of Python's help topics, and docstrings of its standard library (or `--text`). The
default calibration text is run once, by `correlate-inputs`, for all rows that search-scales or gptq are in.
The weights of the demo decoder were rounded to 4 bits once already, asymmetric and in blocks of 32. That is
hidden from the passes, which would keep those blocks. Rows of that very form prove nothing about a method;
they are left out.
"""

import argparse
import importlib
import inspect
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from record import record

from onnxforge.compiler import pipeline
from onnxforge.compiler.build import build
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.eval_text import EvaluationText, Window, cut, evaluation_text, sentences
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.perplexity import Scorer, compare
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.targets import TARGETS
from onnxforge.models import export_model, open_model
from onnxforge.models.source import Source
from onnxforge.models.tasks import task_for
from onnxforge.passes.stored_blocks import STORED_BLOCKS, STORED_BLOCKS_TURNED

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32")
FUSED = FP32.passes[: FP32.passes.index("cleanup")]
DOCUMENTED = (
    "argparse",
    "asyncio",
    "collections",
    "datetime",
    "decimal",
    "email.message",
    "logging",
    "subprocess",
)
MEASURE = "correlate-inputs{samples=32}"
HEAD = "quantize-weights{bits=8,block_size=64}"


def body(form: str, method: str) -> str:
    """The layers in 4 bits, the tied embedding and head in 8."""
    return f"quantize-weights{{bits=4,{form},method={method},skip=embed_tokens}} {HEAD}"


def awq(form: str, method: str) -> str:
    """:func:`body` behind searched scales."""
    return f"search-scales{{{form}}} {body(form, method)}"


B32, B64, A64 = "block_size=32", "block_size=64", "block_size=64,symmetric=false"
STEPS = [
    *(body(B64, method) for method in ("rtn", "mse", "hqq", "gptq")),
    *(awq(B64, method) for method in ("rtn", "gptq")),
    *(body(A64, method) for method in ("rtn", "gptq")),
    awq(A64, "gptq"),
    *(body(B32, method) for method in ("rtn", "gptq")),
    awq(B32, "gptq"),
    *(f"quantize-weights{{bits=4,{B64},method={method}}}" for method in ("rtn", "gptq")),
]
ENCODER = [
    *(
        f"quantize-weights{{bits=4,{form},method={method}}}"
        for form in (B32, B64)
        for method in ("rtn", "mse", "hqq", "gptq")
    ),
    f"search-scales{{{B32}}} quantize-weights{{bits=4,{B32},method=rtn}}",
    f"search-scales{{{B32}}} quantize-weights{{bits=4,{B32},method=gptq}}",
    f"quantize-weights{{bits=8,{B64}}}",
]


class Remembered:
    """A reference that answers from disk what it was asked before."""

    def __init__(self, session: Scorer, folder: Path) -> None:
        self.session = session
        self._folder = folder
        self._files: dict[bytes, Path] = {}

    def logits(self, ids: np.ndarray) -> np.ndarray:
        """float32 [S, V]."""
        path = self._files.get(ids.tobytes())
        if path is None:
            path = self._folder / f"logits{len(self._files)}.npy"
            np.save(path, self.session.logits(ids))
            self._files[ids.tobytes()] = path
        found: np.ndarray = np.load(path, mmap_mode="r")
        return found


@dataclass(frozen=True)
class Row:
    """One way of rounding a decoder's weights. Ratios are to `cpu-fp32`, one per text."""

    steps: str
    bytes: int
    seconds: float
    ratios: tuple[float, ...]
    errors: tuple[float, ...]
    kl: tuple[float, ...]
    top1: tuple[float, ...]


@dataclass(frozen=True)
class Bench:
    """A source, its fused and measured graph, and the folder in which variants are built."""

    source: Source
    fused: ir.Model
    folder: Path

    def session(self, steps: str, name: str) -> tuple[GraphSession, int, float]:
        """A session over the artifact with these steps, the bytes of graph and weights, seconds to build."""
        target = replace(FP32, passes=(*steps.split(), "cleanup"), expects={})
        start = time.perf_counter()
        into = self.folder / name
        into.mkdir()
        build(self.source, self.fused, target, task_for(self.source), into, name=name)
        seconds = time.perf_counter() - start
        return GraphSession(into), sum(path.stat().st_size for path in (into / "onnx").iterdir()), seconds


def prepared(ref: str, folder: Path) -> Bench:
    """The model behind the fusing passes, its inputs measured."""
    source = open_model(ref)
    model = export_model(source)
    hide_blocks(model)
    attach(model, source)
    for step in pipeline.parse((*FUSED, MEASURE)):
        step(model)
    return Bench(source, model, folder)


def hide_blocks(model: ir.Model) -> None:
    """Let no weight say that its source stores it in blocks: methods would leave it alone."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            for key in (STORED_BLOCKS, STORED_BLOCKS_TURNED):
                value.const_value.meta.pop(key, None)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", default="smollm2-135m")
    parser.add_argument("--encoder", default="minilm-l6")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--only", default="", help="a regular expression that the steps must match")
    parser.add_argument("--name", default="weight_methods")
    asked = parser.parse_args()
    texts = [evaluation_text(), evaluation_text(asked.text) if asked.text else docstrings()]
    size, rows, protocols = decoders(asked, texts)
    encoder_size, cosines = encoders(asked)
    record(
        asked.name,
        f"Rounding the weights of {asked.decoder} ({size / 1e6:,.0f} MB) and {asked.encoder}",
        {
            "protocols": protocols,
            "fp32_bytes": size,
            "rows": [asdict(row) for row in rows],
            "encoder_fp32_bytes": encoder_size,
            "encoder": {
                steps: {"bytes": count, "mean": mean, "min": low} for steps, count, mean, low in cosines
            },
        },
        ("steps", "of fp32", "ppl ratio", "", "KL", "", "top-1", "", "build"),
        [shown(row, size) for row in rows],
        [
            *(f"Text {number + 1}: {said}." for number, said in enumerate(protocols)),
            f"{asked.encoder}, cosine over 200 sentences, mean and least, and its size of fp32:",
            *(
                f"`{steps}`: {mean:.5f}, {low:.5f}, {count / encoder_size:.3f}x"
                for steps, count, mean, low in cosines
            ),
        ],
    )
    return 0


def decoders(asked: argparse.Namespace, texts: list[EvaluationText]) -> tuple[int, list[Row], list[str]]:
    """The size of fp32, one row for each of STEPS, and how they were scored."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temp:
        bench = prepared(asked.decoder, Path(temp))
        session, size, _ = bench.session("", "fp32")
        reference = Remembered(session, Path(temp))
        cuts = [cut(text, session.tokenizer(), window=512, limit=asked.windows) for text in texts]
        for number, steps in enumerate(step for step in STEPS if re.search(asked.only, step)):
            rows.append(scored(bench, steps, str(number), reference, [windows for windows, _ in cuts]))
            print(shown(rows[-1], size), flush=True)
            shutil.rmtree(Path(temp) / str(number))
    return size, rows, [protocol.sentence() for _, protocol in cuts]


def scored(bench: Bench, steps: str, name: str, reference: Remembered, texts: list[list[Window]]) -> Row:
    """One variant, built and compared over every text."""
    candidate, count, seconds = bench.session(steps, name)
    found = [compare(reference, candidate, windows) for windows in texts]
    return Row(
        steps,
        count,
        seconds,
        tuple(d.ratio for d in found),
        tuple(d.ratio_error for d in found),
        tuple(d.mean_kl for d in found),
        tuple(d.top1_agreement for d in found),
    )


def encoders(asked: argparse.Namespace) -> tuple[int, list[tuple[str, int, float, float]]]:
    """The size of fp32; for each of ENCODER its bytes and the mean and least cosine to fp32."""
    found = []
    with tempfile.TemporaryDirectory() as temp:
        bench = prepared(asked.encoder, Path(temp))
        reference, size, _ = bench.session("", "fp32")
        work = batches(sentences(200), reference.tokenizer(), 128)
        for number, steps in enumerate(step for step in ENCODER if re.search(asked.only, step)):
            candidate, count, _ = bench.session(steps, str(number))
            parity = compare_encoders(reference, candidate, work)
            found.append((steps, count, parity.mean_cosine, parity.min_cosine))
    return size, found


def docstrings() -> EvaluationText:
    """What the standard library says about itself."""
    said: dict[str, None] = {}
    for name in DOCUMENTED:
        module = importlib.import_module(name)
        for _, item in sorted(vars(module).items()):
            members = [item, *vars(item).values()] if inspect.isclass(item) else [item]
            said |= dict.fromkeys(text for member in members if (text := inspect.getdoc(member)))
    return EvaluationText(
        "docstrings of Python's standard library", "\n\n".join(t for t in said if len(t) > 200)
    )


def shown(row: Row, size: int) -> tuple[str, ...]:
    """The row in print."""
    ratios = (f"{ratio:.4f} ± {error:.4f}" for ratio, error in zip(row.ratios, row.errors, strict=True))
    return (
        row.steps.replace("quantize-weights", ""),
        f"{row.bytes / size:.4f}x",
        *ratios,
        *(f"{kl:.4f}" for kl in row.kl),
        *(f"{share:.3f}" for share in row.top1),
        f"{row.seconds:.0f} s",
    )


if __name__ == "__main__":
    raise SystemExit(main())
