"""Our artifacts beside every peer on the CPU, in one interleaved run.

    compile smollm2-135m --target cpu-int8 -o build/int8
    compile minilm-l6 --target cpu-int8 -o build/minilm-int8
    python bench/peers.py build/int8 --encoder build/minilm-int8 [--with build/int4] [--quick] [--resume]

Builds onnxruntime-genai, llama-cpp-python, openvino-genai and optimum (optimum-onnx, optimum-intel) from PyPI
in virtual environments of their own (`--venvs`), converts the same model for each with its own tools
(`--work`), and measures, all with as many threads as this process may use:

    quality     perplexity over the same token ids; who is above 1.02x of full precision is no yardstick
    speed       prefill of 64, 512 and 2048 tokens, decode at a context of as many, first token, load, memory
    generation  40 prompts, plainly and with each one's own speculation
    encoder     sentences/s of MiniLM-L6, batch 1 and 16, 32 to 128 tokens; cosine to full precision

Every system lives in a process of its own; rounds go through all of them in alternating order, and every
session starts them afresh. What is measured is written after every session into `bench/results/peers.json`,
so a killed run is continued with `--resume`. The page and its plots are made anew from that file each time
(`--report` does nothing else). Exit code 1 when an aim is missed.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from peers_builds import Builds
from peers_encoder import SHAPES, compare_embeddings, encoder_session, encoder_systems
from peers_environments import REQUIREMENTS, Environments, pythons_from
from peers_generation import generation_session
from peers_page import page, read, verdicts
from peers_plots import write_plots
from peers_quality import score_all, windows_for
from peers_speed import speed_session, speed_tests
from peers_state import State
from peers_systems import DEMO_GGUF, Decoders, System
from record import RESULTS
from speculation_prompts import bench_prompts

from onnxforge.compiler.evidence import cpu_name, versions
from onnxforge.compiler.proof_session import GraphSession, threads
from onnxforge.compiler.traffic import traffic_of
from onnxforge.runtimes import load
from onnxforge.runtimes.artifact import read_manifest

SECTIONS = ("quality", "speed", "generation", "encoder")
SECONDS = {"quality": 1.2, "speed": 14.0, "speed load": 3.0, "generation": 0.9, "encoder": 4.0}
"""On two quiet cores, for SmolLM2-135M: of a window, a round, a load, an answer, a round of all shapes."""


def main() -> int:
    asked = arguments()
    # The peers take their number of threads from us; a variable for one of them alone would be unfair.
    os.environ.pop("OMP_NUM_THREADS", None)
    path = RESULTS / f"{asked.name}.json"
    if asked.report:
        return report(State.read(path), path)
    builds = environments(asked)
    decoders = Decoders(
        [asked.artifact, *asked.others], builds(asked.model), asked.gguf, asked.only, asked.fp32
    )
    wanted = asked.sections.split(",")
    systems = decoders.systems() if {*wanted} & {*SECTIONS[:3]} else ()
    encoders = (
        encoder_systems(asked.encoder, builds(asked.encoder_model), asked.only) if asked.encoder else ()
    )
    state = State.opened(path, identity(asked), asked.resume)
    describe(state, asked, systems, encoders)
    plan = {
        "quality": lambda: quality(state, asked, systems),
        "speed": lambda: speed(state, asked, systems),
        "generation": lambda: generation(state, asked, systems),
        "encoder": lambda: encoder(state, asked, encoders),
    }
    print(f"about {estimate(asked, systems, encoders) / 60:.0f} minutes on quiet cores", file=sys.stderr)
    for section in [section for section in SECTIONS if section in wanted]:
        plan[section]()
        report(state, path, quiet=True)
    return report(state, path)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path, help="the decoder that the aims are about")
    parser.add_argument("--with", dest="others", type=Path, action="append", default=[])
    parser.add_argument(
        "--encoder", type=Path, action="append", default=[], help="an encoder artifact; repeatable"
    )
    parser.add_argument(
        "--model", default="smollm2-135m", help="what the peers' converters get the weights of"
    )
    parser.add_argument("--encoder-model", default="minilm-l6")
    parser.add_argument("--gguf", type=Path, default=DEMO_GGUF, help="what llama.cpp requantizes")
    parser.add_argument("--venvs", type=Path, default=Path("build/peers/venvs"))
    parser.add_argument("--work", type=Path, default=Path("build/peers/models"))
    parser.add_argument(
        "--python", action="append", default=[], help="NAME=PYTHON of an environment you made"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--only", default="*", help="peers by name, with wildcards, separated by commas")
    parser.add_argument("--fp32", action="store_true", help="time onnxruntime-genai's fp32 graph too")
    parser.add_argument("--sessions", type=int, default=3, help="of speed and encoder: fresh processes each")
    parser.add_argument("--rounds", type=int, default=3, help="in each session")
    parser.add_argument("--generation-rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128, help="of an answer, at most")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, for the perplexity")
    parser.add_argument("--quick", action="store_true", help="little of everything: does it work?")
    parser.add_argument("--resume", action="store_true", help="go on where a run was killed")
    parser.add_argument("--report", action="store_true", help="only write the page and the plots again")
    parser.add_argument("--name", help="of the result; default peers, or peers-quick")
    asked = parser.parse_args()
    asked.name = asked.name or ("peers-quick" if asked.quick else "peers")
    if unknown := {*asked.sections.split(",")} - {*SECTIONS}:
        parser.error(f"--sections {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    if asked.quick:
        asked.sessions = asked.rounds = asked.generation_rounds = 1
        asked.tokens, asked.windows = min(asked.tokens, 32), min(asked.windows, 2)
    if asked.gguf == DEMO_GGUF and asked.model != "smollm2-135m":
        print("note: no --gguf of this model, so llama.cpp is left out", file=sys.stderr)
        asked.gguf = None
    return asked


def environments(asked: argparse.Namespace) -> Callable[[str], Builds]:
    made = Environments(asked.venvs.absolute(), pythons_from(asked.python))
    return lambda model: Builds(model, asked.work.absolute(), made)


def identity(asked: argparse.Namespace) -> dict[str, object]:
    """What two runs must have in common before their sessions are pooled."""
    artifacts = [asked.artifact, *asked.others, *asked.encoder]
    return {
        "artifacts": [f"{folder.name} {digest(folder)}" for folder in artifacts],
        "model": [asked.model, asked.encoder_model],
        "cpu": cpu_name(),
        "threads": threads(),
        "versions": versions(),
        "requirements": {name: list(pins) for name, pins in REQUIREMENTS.items()},
        "quick": asked.quick,
        "tokens": asked.tokens,
        "windows": asked.windows,
        "only": [asked.only, asked.fp32],
    }


def digest(folder: Path) -> str:
    """Of the manifest, which holds the digests of all other files."""
    return hashlib.sha256((folder / "artifact.json").read_bytes()).hexdigest()


def describe(state: State, asked: argparse.Namespace, systems: tuple[System, ...], encoders: tuple) -> None:
    """Put down who takes part: the page needs it."""
    costs = traffic_of(asked.artifact / "onnx" / "model.onnx")
    state.content.setdefault("systems", {})
    state.content.setdefault("encoder_systems", {})
    state.content["macs"] = costs.integer_macs + costs.float_macs
    state.content["date"] = time.strftime("%Y-%m-%d", time.gmtime())
    state.content["systems"] |= {
        s.name: {
            "ours": s.ours, "ways": [way.name for way in s.ways], "size": s.size, "streamed": s.streamed,
            "cache_bytes": s.cache_bytes, "quality_of": s.quality_of,
        }
        for s in systems
    }  # fmt: skip
    state.content["encoder_systems"] |= {s.name: {"ours": s.ours, "size": s.size} for s in encoders}
    state.write()


def quality(state: State, asked: argparse.Namespace, systems: tuple[System, ...]) -> None:
    windows, protocol = windows_for(asked.artifact, asked.windows)
    state.set("protocol", protocol)
    score_all(systems, windows, state)


def speed(state: State, asked: argparse.Namespace, systems: tuple[System, ...]) -> None:
    tests = speed_tests(read_manifest(asked.artifact).context_length, asked.quick)
    timed = [system for system in systems if "speed" in system.commands]

    def session(number: int) -> dict:
        return speed_session(timed, tests, asked.rounds, number, loads=1 if asked.quick else 2)

    repeat(state, "speed", asked.sessions, session)


def generation(state: State, asked: argparse.Namespace, systems: tuple[System, ...]) -> None:
    prompts = bench_prompts(1 if asked.quick else None)
    with load(asked.artifact) as model:
        ids = {prompt.name: model.prompt_tokens(prompt.messages()) for prompt in prompts}
        common = {"tokens": asked.tokens, "eos": list(model.defaults.eos_token_id)}
    speaking = [system for system in systems if system.ways]
    repeat(
        state,
        "generation",
        asked.generation_rounds,
        lambda number: generation_session(speaking, prompts, ids, common, number),
    )


def encoder(state: State, asked: argparse.Namespace, systems: tuple) -> None:
    if not systems:
        print("note: no --encoder, so encoders are left out", file=sys.stderr)
        return
    compare_embeddings(systems, 32 if asked.quick else 200, state)
    tokenizer = GraphSession(asked.encoder[0]).tokenizer()
    repeat(
        state,
        "encoder",
        asked.sessions,
        lambda number: encoder_session(systems, tokenizer, asked.rounds, number),
    )


def repeat(state: State, section: str, count: int, session: Callable[[int], dict]) -> None:
    """As many sessions as are missing, each kept as soon as it is done."""
    for number in range(len(state.sessions(section)), count):
        started = time.perf_counter()
        state.add(section, session(number))
        spent = time.perf_counter() - started
        left = (count - number - 1) * spent / 60
        print(
            f"{section} {number + 1}/{count}: {spent:,.0f} s; {left:.0f} minutes left of it", file=sys.stderr
        )


def estimate(asked: argparse.Namespace, systems: tuple[System, ...], encoders: tuple) -> float:
    """Seconds, had nothing been measured yet."""
    wanted = asked.sections.split(",")
    timed = sum("speed" in system.commands for system in systems)
    ways = sum(len(system.ways) for system in systems)
    prompts = len(bench_prompts(1 if asked.quick else None))
    per_session = (asked.rounds + 1) * SECONDS["speed"] * (0.25 if asked.quick else 1) + 3 * SECONDS[
        "speed load"
    ]
    parts = {
        "quality": len(systems) * asked.windows * SECONDS["quality"],
        "speed": timed * asked.sessions * per_session,
        "generation": ways * prompts * asked.generation_rounds * SECONDS["generation"] * asked.tokens / 128,
        "encoder": len(encoders) * asked.sessions * (asked.rounds + 1) * SECONDS["encoder"] * len(SHAPES) / 5,
    }
    return sum(seconds for section, seconds in parts.items() if section in wanted)


def report(state: State, path: Path, quiet: bool = False) -> int:
    """Write the page and the plots; 1 when an aim is missed."""
    reading = read(state.content)
    plots = write_plots(reading, path.parent, path.stem)
    known = state.content["identity"]
    peers = ", ".join(dict.fromkeys(pin for pins in known["requirements"].values() for pin in pins))
    machine = f"{known['cpu']}, {known['threads']} threads, {state.content['date']}. Peers: {peers}."
    text = page(reading, machine, plots)
    path.with_suffix(".md").write_text(text)
    if not quiet:
        print(text)
    return int(any(found.word == "MISSED" for found in verdicts(reading)))


if __name__ == "__main__":
    sys.exit(main())
