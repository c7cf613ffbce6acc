"""An int8 key-value cache beside a floating-point one: quality of incremental decoding, speed, memory.

    python bench/int8_cache.py [--target cpu-fp32] [--windows 4] [--only quality|speed]

The same target is compiled three times: as it is, with ``--kv int8`` (a scale per channel), and with one
scale per tensor. Quality: every window is decoded token by token over the cache, and each variant's
distributions are held against the same target's floating-point cache, over two texts of which neither was
calibrated on. Speed: the runtime's decoding at three depths of context and prefill of two lengths, every
variant in its own process, all interleaved.
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from record import record
from weight_methods import Remembered, docstrings

from onnxforge.compiler import pipeline
from onnxforge.compiler.build import build
from onnxforge.compiler.cache_option import Cache, with_cache
from onnxforge.compiler.cached_steps import CachedSteps
from onnxforge.compiler.eval_text import cut, evaluation_text
from onnxforge.compiler.perplexity import Divergence, compare
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.speed import measure
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest
from onnxforge.compiler.target_file import find_target
from onnxforge.compiler.targets import Target
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for

FLOAT, CHANNEL, TENSOR = "float", "int8, channel", "int8, tensor"
SPEED = (
    SpeedTest(generate=32),
    SpeedTest(generate=32, depth=512),
    SpeedTest(generate=32, depth=2048),
    SpeedTest(prompt=512),
    SpeedTest(prompt=2048),
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--target", default="cpu-fp32")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--long", type=int, default=1, help="windows of 2048 tokens, beside those of 512")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("quality", "speed"))
    parser.add_argument("--tokens-per-run", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folders = built(asked.model, find_target(asked.target), Path(temp))
        if asked.only != "speed":
            write_quality(asked, folders, Path(temp))
        if asked.only != "quality":
            write_speed(asked, folders)
    return 0


def built(model: str, target: Target, temp: Path) -> Mapping[str, Path]:
    """The three variants by name."""
    source = open_model(model)
    exported = export_model(source)
    narrow = with_cache(target, Cache.INT8)
    coarse = pipeline.edit(
        pipeline.parse(narrow.passes), settings=["quantize-cache.granularity=tensor"], without=[]
    )
    passes = {
        FLOAT: target.passes,
        CHANNEL: narrow.passes,
        TENSOR: tuple(step.text() for step in coarse),
    }
    found = {}
    for number, (name, steps) in enumerate(passes.items()):
        found[name] = temp / str(number)
        found[name].mkdir()
        wanted = Target(name, "", steps, provider=target.provider, session=target.session)
        build(source, exported, wanted, task_for(source), found[name], name=name)
    return found


def write_quality(asked: argparse.Namespace, folders: Mapping[str, Path], temp: Path) -> None:
    """Each variant against the floating-point cache, text by text."""
    reference = GraphSession(folders[FLOAT])
    base = Remembered(CachedSteps(reference.decoder_graph(), asked.tokens_per_run), temp)
    rows: list[tuple[str, ...]] = []
    facts: dict[str, object] = {}
    protocols = []
    for text in (evaluation_text(), docstrings()):
        for window, limit in ((512, asked.windows), (2048, asked.long)):
            if not limit:
                continue
            windows, protocol = cut(text, reference.tokenizer(), window=window, limit=limit)
            protocols.append(protocol.sentence())
            for name in (CHANNEL, TENSOR):
                session = GraphSession(folders[name])
                steps = CachedSteps(session.decoder_graph(), asked.tokens_per_run)
                found = compare(base, steps, windows)
                facts[f"{text.name} / {window} / {name}"] = asdict(found)
                rows.append((f"{len(protocols)}", name, *shown(found)))
                print(*rows[-1], flush=True)
    record(
        f"int8_cache_quality-{asked.target}",
        f"Decoding through an int8 cache, {asked.model} for {asked.target}: quality",
        {"protocols": protocols, "rows": facts, "tokens_per_run": asked.tokens_per_run},
        ("text", "cache", "ppl ratio", "KL", "KL 99%", "KL max", "top-1", "top-5"),
        rows,
        [
            f"Against the same target with its floating-point cache; both decode {asked.tokens_per_run} "
            "token(s) a run.",
            *(f"Text {number + 1}: {said}." for number, said in enumerate(protocols)),
        ],
    )


def shown(found: Divergence) -> tuple[str, ...]:
    """One comparison in print."""
    return (
        f"{found.ratio:.5f} ± {found.ratio_error:.5f}",
        f"{found.mean_kl:.6f}",
        f"{found.kl.percentiles['99.0']:.4f}",
        f"{found.max_kl:.3f}",
        f"{100 * found.top1_agreement:.2f}%",
        f"{100 * found.top5_agreement:.2f}%",
    )


def write_speed(asked: argparse.Namespace, folders: Mapping[str, Path]) -> None:
    """Tokens per second, interleaved; bytes of the cache and of the process."""
    reports = measure(folders, SPEED, rounds=asked.rounds)
    per_token = {n: GraphSession(f).decoder_graph().cache_bytes_per_token for n, f in folders.items()}
    rows = [speed_row(test.name, reports) for test in SPEED]
    rows.append(("cache, bytes per token", *(f"{per_token[name]:,}" for name in folders)))
    rows.append(("peak memory, MB", *(f"{reports[name].peak_rss / 1e6:,.0f}" for name in folders)))
    record(
        f"int8_cache_speed-{asked.target}",
        f"Decoding through an int8 cache, {asked.model} for {asked.target}: speed and memory",
        {"reports": {name: asdict(report) for name, report in reports.items()}, "bytes_per_token": per_token},
        ("test", *folders),
        rows,
        [f"Tokens per second, medians over {asked.rounds} interleaved rounds; the ratio is to float."],
    )


def speed_row(test: str, reports: Mapping[str, SpeedReport]) -> tuple[str, ...]:
    """One test, every variant."""
    base = reports[FLOAT].timing(test)
    cells = []
    for report in reports.values():
        timing = report.timing(test)
        assert timing is not None
        assert base is not None
        cells.append(f"{timing.median:,.1f} ({timing.median / base.median:.2f}x)")
    return test, *cells


if __name__ == "__main__":
    raise SystemExit(main())
