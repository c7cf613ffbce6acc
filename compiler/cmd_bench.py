"""``bench DIR``: llama-bench's tests and llama-bench's columns, so that results paste side by side."""

import csv
import io
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from onnxforge.compiler.options import Artifact, AsJson, CudaGraph, Debug, Threads
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest, Timing
from onnxforge.runtimes.artifact import Manifest, read_manifest

_SENTENCES, _BATCH = 64, 16
_NUMBER = re.compile(r"[0-9]{1,9}")


class Format(StrEnum):
    """How the table is written."""

    MD = "md"
    JSON = "json"
    CSV = "csv"


_Prompt = Annotated[
    list[str],
    typer.Option("-p", "--n-prompt", metavar="N,...", help="Prompt tokens; several make more tests."),
]
_Generate = Annotated[
    list[str],
    typer.Option("-n", "--n-gen", metavar="N,...", help="Generated tokens; several make more tests."),
]
_Depth = Annotated[
    list[str], typer.Option("-d", "--n-depth", metavar="N,...", help="Tokens already in the cache.")
]
_Rounds = Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Repetitions of every test.")]
_Profile = Annotated[
    bool,
    typer.Option("--profile", help="Say where the time goes, by operator and node, and how near its bound."),
]
_Top = Annotated[int, typer.Option("--top", min=0, help="Nodes that --profile lists for each test.")]
_Output = Annotated[Format, typer.Option("-o", "--output", help="Format of the table.")]


def bench(
    folder: Artifact,
    prompt: _Prompt = ["512"],  # noqa: B006 (typer's way to say a repeatable option's default)
    generate: _Generate = ["128"],  # noqa: B006
    depth: _Depth = ["0"],  # noqa: B006
    repetitions: _Rounds = 5,
    profile: _Profile = False,
    top: _Top = 10,
    threads: Threads = None,
    cuda_graph: CudaGraph = None,
    output: _Output = Format.MD,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure prefill and decode speed (decoders), or sentences per second (encoders)."""
    from onnxforge.compiler.errors import RequestRefused
    from onnxforge.compiler.eval_text import sentences
    from onnxforge.compiler.proof_session import threads as default_threads
    from onnxforge.compiler.speed import measure
    from onnxforge.compiler.traffic import traffic_of
    from onnxforge.runtimes.session import cuda_graph_hindrance
    from onnxforge.runtimes.verify import verify_files

    verify_files(folder)
    manifest = read_manifest(folder)
    hindrance = cuda_graph_hindrance(manifest, manifest.provider)
    if cuda_graph and hindrance is not None:
        raise RequestRefused(f"{folder}: --cuda-graph is not possible: {hindrance}.")
    texts: list[str] = []
    if manifest.task.startswith("text-generation"):
        prompts, counts, depths = _numbers("-p", prompt), _numbers("-n", generate), _numbers("-d", depth)
        tests = [SpeedTest(prompt=p, depth=d) for d in depths for p in prompts if p > 0]
        tests += [SpeedTest(generate=n, depth=d) for d in depths for n in counts if n > 0]
        _fit(tests, manifest.context_length)
    else:
        texts = sentences(_SENTENCES)
        tests = [SpeedTest(sentences=_BATCH if profile else len(texts))]
    if profile:
        from onnxforge.compiler.profile_page import profile_json, profile_page

        if as_json or output is Format.JSON:
            print(profile_json(folder, tests, threads or default_threads()))
        else:
            print(profile_page(folder, tests, threads or default_threads(), top), end="")
        return
    counted = manifest.summary.get("parameters")
    parameters = int(counted) if counted else traffic_of(folder / manifest.graph).parameters
    told = {"": cuda_graph}
    folders = {"": folder}
    reports = measure(folders, tests, rounds=repetitions, sentences=texts, threads=threads, cuda_graph=told)
    rows = [_row(folder, manifest, parameters, reports[""], timing) for timing in reports[""].timings]
    chosen = Format.JSON if as_json else output
    sys.stdout.write({Format.MD: _markdown, Format.JSON: _json, Format.CSV: _csv}[chosen](rows))


def _numbers(option: str, given: Sequence[str]) -> list[int]:
    """The numbers of an option that may be repeated and may hold several, as llama-bench's: ``512,1024``."""
    from onnxforge.compiler.errors import RequestRefused

    words = [word.strip() for text in given for word in text.split(",")]
    wrong = [word for word in words if not _NUMBER.fullmatch(word)]
    if wrong:
        raise RequestRefused(
            f"{option} holds {wrong[0]!r}; give whole numbers with commas: {option} 512,1024."
        )
    return [int(word) for word in words]


def _fit(tests: Sequence[SpeedTest], context: int) -> None:
    from onnxforge.compiler.errors import RequestRefused

    if not tests:
        raise RequestRefused("There is nothing to measure: give -p or -n a number above 0.")
    for test in tests:
        if test.depth + test.prompt + test.generate > context:
            raise RequestRefused(f"Test {test.name} needs more than the model's context of {context} tokens.")


def _row(
    folder: Path, manifest: Manifest, parameters: int, report: SpeedReport, timing: Timing
) -> dict[str, object]:
    """One result under llama-bench's field names. Times are nanoseconds; ``model_size`` is bytes."""
    from onnxforge.compiler.evidence import cpu_name

    size = sum(f.size for f in manifest.files if f.path.startswith(str(Path(manifest.graph).parent)))
    seconds = timing.seconds
    mean = sum(seconds) / len(seconds)
    spread = (sum((s - mean) ** 2 for s in seconds) / max(len(seconds) - 1, 1)) ** 0.5
    return {
        "cpu_info": cpu_name(),
        "model_filename": str(folder),
        "model_type": f"{manifest.model_type} {_count(parameters)} {manifest.target}",
        "model_size": size,
        "model_n_params": parameters,
        "backends": manifest.provider.removesuffix("ExecutionProvider"),
        "n_threads": report.threads,
        "n_prompt": timing.test.prompt,
        "n_gen": timing.test.generate,
        "n_depth": timing.test.depth,
        "test": timing.test.name,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "avg_ns": round(1e9 * mean),
        "stddev_ns": round(1e9 * spread),
        "avg_ts": timing.mean,
        "stddev_ts": timing.deviation,
        "samples_ns": [round(1e9 * s) for s in seconds],
        "samples_ts": list(timing.rates),
    }


def _markdown(rows: Sequence[Mapping[str, object]]) -> str:
    from onnxforge.compiler.markdown_table import table

    header = ("model", "size", "params", "backend", "threads", "test", "t/s")
    body = [
        (
            str(row["model_type"]),
            f"{float(str(row['model_size'])) / 2**20:.2f} MiB",
            f"{float(str(row['model_n_params'])) / 1e6:.2f} M",
            str(row["backends"]),
            str(row["n_threads"]),
            str(row["test"]),
            f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}",
        )
        for row in rows
    ]
    return table(header, body, right=(1, 2, 4, 5, 6))


def _json(rows: Sequence[Mapping[str, object]]) -> str:
    return json.dumps(rows, indent=2) + "\n"


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    text = io.StringIO()
    flat = [{k: v for k, v in row.items() if not k.startswith("samples")} for row in rows]
    writer = csv.DictWriter(text, fieldnames=list(flat[0]), quoting=csv.QUOTE_ALL, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f}B" if parameters >= 10**9 else f"{parameters / 1e6:.0f}M"
