"""Compile time and peak memory beside onnxruntime-genai's model builder, the same weights, one run.

    python bench/compile_cost.py --peer-python /path/to/venv/bin/python [--rounds 3]

Ours runs without the proof, which the builder does not have. Time is wall time of the process; memory is the
high-water mark of resident memory of the process tree, sampled every 20 ms, mapped file pages included. The
builder reads a Hugging Face folder; ours reads the demo model's own file, dequantization included.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from hf_folder_from_source import write_hf_folder
from record import record

from onnxforge.models import open_model


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    weights = 4 * sum(w.size for w in open_model(asked.model).weights.values())
    results: dict[str, list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as temp:
        folder = write_hf_folder(asked.model, Path(temp) / "hf")
        for number in range(asked.rounds):
            for name, command in commands(asked, folder, Path(temp), number).items():
                results.setdefault(name, []).append(cost(command))
    rows = [
        (
            name,
            f"{statistics.median(t for t, _ in runs):.1f} s",
            f"{min(t for t, _ in runs):.1f} to {max(t for t, _ in runs):.1f}",
            f"{statistics.median(m for _, m in runs) / 1e6:,.0f} MB",
            f"{statistics.median(m for _, m in runs) / weights:.2f}x",
        )
        for name, runs in results.items()
    ]
    record(
        "compile_cost",
        f"Compile cost of {asked.model} ({weights / 1e6:,.0f} MB of fp32 weights)",
        {
            "fp32_weight_bytes": weights,
            "runs": {n: [{"s": t, "rss": m} for t, m in r] for n, r in results.items()},
        },
        ("compile", "time", "spread, s", "peak RSS", "of fp32 weights"),
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


def cost(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak bytes of ``command`` and its children."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            tree = [watched, *watched.children(recursive=True)]
            peak = max(peak, sum(p.memory_info().rss for p in tree))
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.02)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"{command[0]} failed: {process.stderr.read().decode()[-2000:]}")
    return seconds, peak


if __name__ == "__main__":
    sys.exit(main())
