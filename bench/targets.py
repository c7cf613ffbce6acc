"""Every target of the demo models in two tables: size, quality, speed, memory.

    python bench/targets.py [--only REGEX] [--windows 8] [--rounds 5] [--keep DIR] [--text some.txt]

Each target is built as `compile MODEL --target T` builds it. Quality is held against the artifact of
`cpu-fp32`: a decoder's over the held-out half of Python's help topics and over docstrings of its standard
library (or `--text`), on which nothing was calibrated; an encoder's over 200 sentences. Speeds are medians of
interleaved rounds, each artifact in its own process. A target whose provider this machine lacks is judged on
the CPU and has no speed. With `--keep` artifacts stay in that folder and are not built again.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from record import record
from weight_methods import Remembered, docstrings, hide_blocks

from onnxforge.compiler.build import build
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.eval_text import EvaluationText, cut, evaluation_text, sentences
from onnxforge.compiler.parity import batches, compare_encoders
from onnxforge.compiler.perplexity import compare
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.provider_here import stand_in
from onnxforge.compiler.speed import measure
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for
from onnxforge.passes.base import PassRefused
from onnxforge.runtimes.text_tokenizer import TextTokenizer

BASE = "cpu-fp32"
PREFILL, DECODE = SpeedTest(prompt=512), SpeedTest(generate=64)
ENCODE = SpeedTest(sentences=16)
ENCODED = 64
"""Tokens of a text that encoders are timed with, special ones included."""
LONGEST = 128
ROUNDS_AGAIN = ("cpu-int4",)
"""Targets that keep the 4-bit blocks of a source. They have a second row: the same blocks read as floats and
rounded, which is what a float source gets."""
HIDDEN = " of floats"


@dataclass(frozen=True)
class Built:
    """One target's artifact of one model."""

    target: Target
    folder: Path
    seconds: float
    """0 when it was there already."""

    @property
    def size(self) -> int:
        """Bytes of graph and weights."""
        return sum(path.stat().st_size for path in (self.folder / "onnx").iterdir())

    def session(self) -> GraphSession:
        """The graph, on its provider or the one that stands in for it."""
        return GraphSession(self.folder, stand_in(self.target.provider))


@dataclass(frozen=True)
class Row:
    """A target's numbers; ``quality`` by name, with the names in the order of the table."""

    target: str
    size: int
    seconds: float
    quality: Mapping[str, str]
    speed: SpeedReport | None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--decoder", default="smollm2-135m")
    parser.add_argument("--encoder", default="minilm-l6")
    parser.add_argument("--only", default="", help="a regular expression that the target must match")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--name", default="targets")
    asked = parser.parse_args()
    chosen = [t for t in TARGETS if t.name == BASE or re.search(asked.only, t.name)]
    texts = [evaluation_text(), evaluation_text(asked.text) if asked.text else docstrings()]
    with tempfile.TemporaryDirectory() as temp:
        root = asked.keep or Path(temp)
        decoders = artifacts(asked.decoder, chosen, root)
        decoders += artifacts(asked.decoder, [t for t in chosen if t.name in ROUNDS_AGAIN], root, hide=True)
        encoders = artifacts(asked.encoder, chosen, root)
        score, protocols = decoder_score(decoders[0], texts, asked.windows, Path(temp))
        rows = table_rows(decoders, score, (PREFILL, DECODE), asked.rounds)
        tables = {asked.decoder: rows}
        lines = of_length(ENCODED, ENCODE.sentences, TextTokenizer(encoders[0].folder))
        rows = table_rows(encoders, encoder_score(encoders[0]), (ENCODE,), 5 * asked.rounds, lines)
        tables[asked.encoder] = rows
    remarks = [f"Text {number + 1}: {protocol}." for number, protocol in enumerate(protocols)]
    remarks.append(f"Cosines: {asked.encoder} over 200 sentences of the default text.")
    remarks.append(f"encode{ENCODE.sentences}: texts per second, one batch of texts of {ENCODED} tokens.")
    for number, (model, rows) in enumerate(tables.items()):
        header = ("target", "MB", "of fp32", *rows[0].quality, *speed_columns(rows[0]), "RSS, MB", "build")
        record(
            asked.name if not number else f"{asked.name}-encoder",
            f"Every target of {model}",
            {"protocols": protocols, "rows": [asdict(row) for row in rows]},
            header,
            [shown(row, rows[0], len(header)) for row in rows],
            remarks,
        )
    return 0


def artifacts(model: str, chosen: Sequence[Target], root: Path, hide: bool = False) -> list[Built]:
    """Every target that takes the model, built; the others say why not."""
    source = open_model(model)
    exported = export_model(source)
    if hide:
        hide_blocks(exported)
        chosen = [replace(target, name=target.name + HIDDEN) for target in chosen]
    found = []
    for target in chosen:
        folder = root / model / target.name
        seconds = 0.0
        if not (folder / "artifact.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            start = time.perf_counter()
            try:
                build(source, exported, target, task_for(source), folder, name=target.name)
            except (PassRefused, RequestRefused) as refusal:
                print(f"{model}, {target.name}: {refusal}", flush=True)
                continue
            seconds = time.perf_counter() - start
            print(f"{model}, {target.name}: {seconds:.0f} s", flush=True)
        found.append(Built(target, folder, seconds))
    return found


def of_length(tokens: int, count: int, tokenizer: TextTokenizer) -> list[str]:
    """``count`` different texts that are read as ``tokens`` tokens each, give or take two."""
    plain = tokenizer.encode(evaluation_text().text, add_special_tokens=False)
    size = tokens - len(tokenizer.encode("", add_special_tokens=True))
    return [tokenizer.decode(plain[at * size : (at + 1) * size]) for at in range(count)]


Score = Callable[[GraphSession], Mapping[str, str]]


def decoder_score(
    base: Built, texts: Sequence[EvaluationText], windows: int, temp: Path
) -> tuple[Score, list[str]]:
    """How to judge a decoder, and how that is said."""
    reference = Remembered(base.session(), temp)
    cuts = [cut(text, reference.session.tokenizer(), window=512, limit=windows) for text in texts]

    def score(candidate: GraphSession) -> Mapping[str, str]:
        found = [compare(reference, candidate, work) for work, _ in cuts]
        quality = {f"ppl ratio {n + 1}": f"{d.ratio:.4f} ± {d.ratio_error:.4f}" for n, d in enumerate(found)}
        quality |= {f"KL {n + 1}": f"{d.mean_kl:.4f}" for n, d in enumerate(found)}
        return quality | {f"top-1 {n + 1}": f"{d.top1_agreement:.3f}" for n, d in enumerate(found)}

    return score, [protocol.sentence() for _, protocol in cuts]


def encoder_score(base: Built) -> Score:
    """How to judge an encoder."""
    reference = base.session()
    work = batches(sentences(200), reference.tokenizer(), LONGEST)

    def score(candidate: GraphSession) -> Mapping[str, str]:
        parity = compare_encoders(reference, candidate, work)
        return {"cosine, mean": f"{parity.mean_cosine:.5f}", "least": f"{parity.min_cosine:.5f}"}

    return score


def table_rows(
    built: Sequence[Built],
    score: Score,
    tests: Sequence[SpeedTest],
    rounds: int,
    lines: Sequence[str] = (),
) -> list[Row]:
    """Quality one after the other, then speed side by side."""
    quality = {item.target.name: score(item.session()) for item in built}
    here = {i.target.name: i.folder for i in built if stand_in(i.target.provider) == i.target.provider}
    speeds = measure(here, tests, rounds=rounds, sentences=lines)
    return [
        Row(i.target.name, i.size, i.seconds, quality[i.target.name], speeds.get(i.target.name))
        for i in built
    ]


def speed_columns(base: Row) -> tuple[str, ...]:
    """One column for every test that the base was timed with."""
    return tuple(timing.test.name for timing in base.speed.timings) if base.speed else ()


def shown(row: Row, base: Row, width: int) -> tuple[str, ...]:
    """The row as cells."""
    cells = [row.target, f"{row.size / 1e6:.1f}", f"{row.size / base.size:.3f}x", *row.quality.values()]
    for name in speed_columns(base):
        mine = row.speed.timing(name) if row.speed else None
        theirs = base.speed.timing(name) if base.speed else None
        cells.append(f"{mine.median:,.0f} ({mine.median / theirs.median:.2f}x)" if mine and theirs else "")
    cells.append(f"{row.speed.peak_rss / 1e6:.0f}" if row.speed else "")
    cells.append(f"{row.seconds:.0f} s" if row.seconds else "")
    assert len(cells) == width
    return tuple(cells)


if __name__ == "__main__":
    raise SystemExit(main())
