"""Compile time and peak memory beside onnxruntime-genai's model builder, the same weights, one run.

    python bench/compile_cost.py --peer-python /path/to/venv/bin/python [--rounds 3]

Ours runs without the proof, which the builder does not have. Time is wall time of the process. Memory is
resident memory sampled every 20 ms, mapped file pages included: of the largest process, and of the process
tree (our self-check runs in a child, and pages that both map count twice). The builder reads a Hugging Face
folder; ours reads the demo model's own file, dequantization included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from hf_folder_from_source import write_hf_folder
from record import record

from onnxforge.models import open_model


@dataclass(frozen=True)
class Cost:
    """One compile: wall time, and peak resident bytes of its largest process and of all of them."""

    seconds: float
    largest: int
    tree: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    weights = 4 * sum(w.size for w in open_model(asked.model).weights.values())
    results: dict[str, list[Cost]] = {}
    with tempfile.TemporaryDirectory() as temp:
        folder = write_hf_folder(asked.model, Path(temp) / "hf")
        for number in range(asked.rounds):
            for name, command in commands(asked, folder, Path(temp), number).items():
                results.setdefault(name, []).append(cost(command))
    rows = [
        (
            name,
            f"{statistics.median(r.seconds for r in runs):.1f} s",
            f"{min(r.seconds for r in runs):.1f} to {max(r.seconds for r in runs):.1f}",
            f"{statistics.median(r.largest for r in runs) / 1e6:,.0f} MB",
            f"{statistics.median(r.largest for r in runs) / weights:.2f}x",
            f"{statistics.median(r.tree for r in runs) / 1e6:,.0f} MB",
        )
        for name, runs in results.items()
    ]
    record(
        "compile_cost",
        f"Compile cost of {asked.model} ({weights / 1e6:,.0f} MB of fp32 weights)",
        {
            "fp32_weight_bytes": weights,
            "runs": {name: [asdict(run) for run in runs] for name, runs in results.items()},
        },
        ("compile", "time", "spread, s", "peak RSS", "of fp32 weights", "whole tree"),
        rows,
        [f"Medians of {asked.rounds} interleaved rounds."],
    )
    return 0


def commands(asked: argparse.Namespace, folder: Path, temp: Path, number: int) -> dict[str, list[str]]:
    ours = [str(Path(sys.executable).parent / "onnxforge"), "compile", asked.model, "--no-proof"]
    theirs = [asked.peer_python, "-m", "onnxruntime_genai.models.builder", "-i", str(folder), "-e", "cpu"]
    out = str(temp / f"out{number}")
    return {
        "onnxforge cpu-fp32": [*ours, "--target", "cpu-fp32", "-o", f"{out}-fp32"],
        "genai builder fp32": [*theirs, "-p", "fp32", "-o", f"{out}-genai-fp32", "-c", f"{out}-cache"],
        "onnxforge cpu-int8": [*ours, "--target", "cpu-int8", "-o", f"{out}-int8"],
        "genai builder int4": [*theirs, "-p", "int4", "-o", f"{out}-genai-int4", "-c", f"{out}-cache"],
    }


def cost(command: Sequence[str]) -> Cost:
    """Run ``command`` and watch it and its children."""
    started, largest, whole = time.perf_counter(), 0, 0
    with tempfile.TemporaryFile() as said:  # a pipe that nobody reads would fill and stop the process
        process = subprocess.Popen(command, stdout=said, stderr=said)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                tree = [watched, *watched.children(recursive=True)]
                sizes = [p.memory_info().rss for p in tree]
                largest, whole = max(largest, *sizes), max(whole, sum(sizes))
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.02)
        seconds = time.perf_counter() - started
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{command[0]} failed: {said.read().decode()[-2000:]}")
    return Cost(seconds, largest, whole)


if __name__ == "__main__":
    sys.exit(main())
