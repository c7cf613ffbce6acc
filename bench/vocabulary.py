"""What a smaller vocabulary costs and gains: tokens kept by corpora of several sizes, quality, size, speed.

    python bench/vocabulary.py quality [--windows 8] [--artifact DIR] [--only REGEX]
    python bench/vocabulary.py speed [--rounds 5] [--keep DIR]

Quality is that of float32 weights: a cut is exact, so the source's own graph is asked for the kept tokens (a
compile's proof compares the two). Perplexities are ratios to the source over the same text, per token of the
source's reading. Speed is that of artifacts built by `cpu-fp32` and `cpu-int8` with the pass in front.
"""

import argparse
import ast
import re
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import onnx_ir as ir
from record import record
from tokenizers import Tokenizer
from weight_methods import Remembered, docstrings

from onnxforge.compiler.build import build
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.calibration_tokens import tokenizer_of
from onnxforge.compiler.count_tokens import CountTokens
from onnxforge.compiler.eval_text import EvaluationText, calibration_text, cut, evaluation_text
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.retokenized import Reader, SameText, same_text
from onnxforge.compiler.served_source import served_source
from onnxforge.compiler.speed import measure
from onnxforge.compiler.speed_types import SpeedTest
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.compiler.token_map import OfKeptTokens, TokenMap
from onnxforge.models import Source, export_model, open_model
from onnxforge.models.tasks import task_for
from onnxforge.passes.base import PassRefused
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.token_counts import counts_of, kept_tokens

CHOICES = (
    PruneVocabulary(),
    PruneVocabulary(min_count=3),
    PruneVocabulary(share=0.9),
    PruneVocabulary(share=0.75),
    PruneVocabulary(share=0.5),
    PruneVocabulary(share=0.25),
)
SPEED_CHOICES = (None, PruneVocabulary(share=0.5), PruneVocabulary(share=0.9))
PREFILL, DECODE = SpeedTest(prompt=512), SpeedTest(generate=64)
WINDOW = 512


@dataclass(frozen=True)
class Row:
    """One corpus and one choice."""

    corpus: str
    tokens: int
    step: str
    kept: int
    covered: float
    """Share of the corpus that is made of kept tokens."""
    scores: Sequence[SameText]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("quality", "speed"))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="a regular expression that a corpus' name must match")
    parser.add_argument("--artifact", type=Path, help="of cpu-fp32, else it is built")
    parser.add_argument("--keep", type=Path, help="a folder where artifacts stay and are looked for")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        if asked.part == "quality":
            quality(asked.model, asked.artifact, asked.windows, asked.only, Path(temp))
        else:
            speed(asked.model, asked.rounds, asked.keep or Path(temp))
    return 0


def quality(name: str, artifact: Path | None, windows: int, only: str, temp: Path) -> None:
    """The table of corpora and choices."""
    source = open_model(name)
    if artifact is None:
        artifact = temp / "whole"
        target = next(target for target in TARGETS if target.name == "cpu-fp32")
        made(source, export_model(source), target, artifact)
    session = GraphSession(artifact)
    texts = [evaluation_text(), docstrings()]
    cuts = [cut(text, session.tokenizer(), window=WINDOW, limit=windows)[0] for text in texts]
    pieces = [[window.text for window in work] for work in cuts]
    reference = Reader(Remembered(session, temp), session.tokenizer())
    rows = []
    for corpus in (corpus for corpus in corpora() if re.search(only, corpus.name)):
        path = temp / f"{corpus.name}.txt"
        path.write_text(corpus.text, encoding="utf-8")
        for step in CHOICES:
            model = ir.load(artifact / "onnx" / "model.onnx")
            attach(model, source, str(path))
            CountTokens()(model)
            counts = counts_of(model)
            assert counts is not None
            total, before = int(counts.counts.sum()), counts
            try:
                step(model)
            except PassRefused as refusal:
                print(refusal)
                continue
            kept = kept_tokens(model)
            tokenizer = tokenizer_of(served_source(source, model))
            assert kept is not None
            assert isinstance(tokenizer, Tokenizer)
            ours = Reader(OfKeptTokens(session, TokenMap(kept, len(before.counts))), tokenizer)
            scores = [same_text(reference, ours, work, 2 * WINDOW) for work in pieces]
            row = Row(corpus.name, total, step.text(), len(kept), before.counts[kept].sum() / total, scores)
            print(shown(row), flush=True)
            rows.append(row)
    header = (
        "corpus",
        "its tokens",
        "pass",
        "kept",
        "covered",
        "topics: ratio",
        "tokens",
        "docstrings: ratio",
        "tokens",
    )
    remarks = [
        f"Ratios: perplexity per token of the source over the same {windows} windows of {WINDOW} tokens of "
        f"{' and of '.join(text.name for text in texts)}; tokens: how many times as many the text takes. "
        f"Reference: {rows[0].scores[0].reference.value:.2f} and {rows[0].scores[1].reference.value:.2f}."
    ]
    record(
        "vocabulary-quality",
        f"Vocabularies of {name}",
        {"rows": [asdict(row) for row in rows]},
        header,
        [shown(row) for row in rows],
        remarks,
    )


def corpora() -> list[EvaluationText]:
    """Three sizes: an eighth of the default calibration text, all of it, and with it what the modules of the
    standard library say about themselves, those of the evaluated docstrings left out."""
    default = calibration_text().text
    held_out = docstrings().text
    said: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
        said |= dict.fromkeys(text for text in found if text and text not in held_out)
    large = "\n\n".join([default, *said])
    return [
        EvaluationText("topics, an eighth", default[: len(default) // 8]),
        EvaluationText("topics", default),
        EvaluationText("topics and docstrings", large),
    ]


def shown(row: Row) -> tuple[str, ...]:
    """The row as cells."""
    scores = (
        cell for s in row.scores for cell in (f"{s.ratio:.3f} ± {s.ratio_error:.3f}", f"{s.growth:.3f}")
    )
    return (row.corpus, f"{row.tokens:,}", row.step, f"{row.kept:,}", f"{row.covered:.2%}", *scores)


def speed(name: str, rounds: int, root: Path) -> None:
    """The table of sizes and speeds."""
    source, folders = open_model(name), {}
    exported = export_model(source)
    for base in ("cpu-fp32", "cpu-int8"):
        target = next(target for target in TARGETS if target.name == base)
        at = target.passes.index("limit-logits") + 1
        for step in SPEED_CHOICES:
            steps = ("count-tokens", step.text()) if step is not None else ()
            label = base if step is None else f"{base}, {step.text()}"
            folders[label] = root / label.replace(", ", "-")
            if not (folders[label] / "artifact.json").is_file():
                cut_target = replace(target, passes=(*target.passes[:at], *steps, *target.passes[at:]))
                made(source, exported, cut_target, folders[label])
    reports = measure(folders, (PREFILL, DECODE), rounds=rounds)
    rows = []
    for label, folder in folders.items():
        whole = reports[label.split(",")[0]]
        size, all_of_it = (
            sum(f.stat().st_size for f in (p / "onnx").iterdir())
            for p in (folder, folders[label.split(",")[0]])
        )
        ours, theirs = (
            [report.timing(test.name) for test in (PREFILL, DECODE)] for report in (reports[label], whole)
        )
        speeds = [
            f"{a.median:,.1f} ({a.median / b.median:.2f}x)"
            for a, b in zip(ours, theirs, strict=True)
            if a and b
        ]
        rss = f"{reports[label].peak_rss / 1e6:.0f}"
        rows.append((label, f"{size / 1e6:.1f}", f"{size / all_of_it:.3f}x", *speeds, rss))
    record(
        "vocabulary-speed",
        f"Vocabularies of {name}: size and speed",
        {"rows": rows},
        ("artifact", "MB", "of whole", PREFILL.name, DECODE.name, "RSS, MB"),
        rows,
        [f"Medians of {rounds} interleaved rounds; ratios to the same target with every token."],
    )


def made(source: Source, exported: ir.Model, target: Target, folder: Path) -> None:
    """Build it, unproven."""
    folder.mkdir(parents=True, exist_ok=True)
    build(source, exported, target, task_for(source), folder, name=folder.name)
    print(f"built {folder.name}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
