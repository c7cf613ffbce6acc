"""Our cpu-fp32 against onnxruntime-genai's own fp32 graph of the same weights, in one run.

    compile smollm2-135m --target cpu-fp32 -o build/fp32
    python bench/peers.py build/fp32 --peer-python /path/to/venv/bin/python [--with build/int8 ...]

The other venv needs onnxruntime-genai and transformers (its model builder makes the graph). Each system lives
in its own process, with the same number of threads; rounds are interleaved. Where its memory comes to lie can
make one process faster than the next by 10%, so each system is started afresh several times. Exit code 1 when
ours is slower on prefill or decode by more than the noise (2%).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from hf_folder_from_source import write_hf_folder
from record import record

from onnxforge.compiler.proof_session import threads
from onnxforge.compiler.speed import decoder_tests, first_token_test, measure
from onnxforge.compiler.speed_types import SpeedReport, Timing

NOISE = 0.98
PEER = "onnxruntime-genai fp32"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--with", dest="others", type=Path, action="append", default=[])
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--sessions", type=int, default=4, help="how often every system is started")
    parser.add_argument("--rounds", type=int, default=3, help="rounds in each session")
    asked = parser.parse_args()
    folders = {f"onnxforge {f.name}": f for f in (asked.artifact, *asked.others)}
    with tempfile.TemporaryDirectory() as temp:
        built = build_genai(asked, Path(temp))
        child = [asked.peer_python, str(Path(__file__).with_name("genai_child.py")), str(built), "0"]
        tests = decoder_tests((512, 64), 128, 512, context=8192)
        peers = {PEER: child}
        first = first_token_test(tests)
        reports = pooled(
            [
                measure(folders, tests, rounds=asked.rounds, first_token=first, peers=peers)
                for _ in range(asked.sessions)
            ]
        )
    theirs, ours = reports[PEER], reports[next(iter(folders))]
    ratios = {t.test.name: t.median / theirs.timing(t.test.name).median for t in ours.timings}
    rows = [row(name, report, theirs) for name, report in reports.items()]
    slower = [name for name, ratio in ratios.items() if ratio < NOISE]
    record(
        "peers",
        "Decode and prefill beside onnxruntime-genai, the same weights",
        {
            "ratios": ratios,
            "slower": slower,
            "sessions": asked.sessions,
            "rounds": asked.rounds,
            "systems": plain(reports),
        },
        ("tokens/s, median (ratio)", *(t.name for t in tests), "first token of 512", "load", "peak RSS"),
        rows,
        [
            f"Medians over {asked.sessions} sessions of {asked.rounds} interleaved rounds. "
            "Every sample is in the JSON file."
        ],
    )
    return 1 if slower else 0


def build_genai(asked: argparse.Namespace, temp: Path) -> Path:
    """The peer's own graph, with our number of threads."""
    source, out = write_hf_folder(asked.model, temp / "hf"), temp / "genai"
    builder = [asked.peer_python, "-m", "onnxruntime_genai.models.builder"]
    command = [*builder, "-i", source, "-o", out, "-p", "fp32", "-e", "cpu", "-c", temp / "cache"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the model builder failed: {done.stderr[-2000:]}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads()
    path.write_text(json.dumps(config))
    return out


def pooled(sessions: list[dict[str, SpeedReport]]) -> dict[str, SpeedReport]:
    """The samples of all sessions as one report for each system."""
    return {name: merged([session[name] for session in sessions]) for name in sessions[0]}


def merged(reports: list[SpeedReport]) -> SpeedReport:
    def gathered(timings: list[Timing]) -> Timing:
        return Timing(timings[0].test, tuple(s for timing in timings for s in timing.seconds))

    return SpeedReport(
        load_seconds=median(r.load_seconds for r in reports),
        peak_rss=max(r.peak_rss for r in reports),
        threads=reports[0].threads,
        timings=tuple(map(gathered, zip(*(r.timings for r in reports), strict=True))),
        first_token=gathered([r.first_token for r in reports]),
    )


def row(name: str, report: SpeedReport, base: SpeedReport) -> tuple[str, ...]:
    cells = [f"{t.median:,.1f} ({t.median / base.timing(t.test.name).median:.2f}x)" for t in report.timings]
    first = report.first_token
    wait = f"{1e3 * first.test.prompt / first.median:,.0f} ms"
    return (name, *cells, wait, f"{report.load_seconds:.2f} s", f"{report.peak_rss / 1e6:,.0f} MB")


def plain(reports: dict[str, SpeedReport]) -> dict[str, object]:
    return {
        name: {
            "tokens_per_s": {t.test.name: [round(r, 2) for r in t.rates] for t in report.timings},
            "first_token_s": report.first_token.seconds,
            "load_s": report.load_seconds,
            "peak_rss": report.peak_rss,
        }
        for name, report in reports.items()
    }


if __name__ == "__main__":
    sys.exit(main())
