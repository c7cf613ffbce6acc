"""The speed section of `peers.py`: prompts, decoding, first token, loading and memory of every decoder."""

from collections.abc import Sequence

from peers_rules import Samples
from peers_systems import System
from speculation import Child

from onnxforge.compiler.roofline import measure_machine
from onnxforge.compiler.speed import measure
from onnxforge.compiler.speed_types import SpeedTest

PROMPTS, DEPTHS, GENERATED = (64, 512, 2048), (64, 512, 2048), 64
FIRST_TOKEN = SpeedTest(prompt=512)


def speed_tests(context: int, quick: bool) -> tuple[SpeedTest, ...]:
    """Those that fit in ``context``."""
    lengths, generated = (PROMPTS[:2], 16) if quick else (PROMPTS, GENERATED)
    prompts = [SpeedTest(prompt=n) for n in lengths if n < context]
    depths = DEPTHS[:2] if quick else DEPTHS
    return (*prompts, *(SpeedTest(generate=generated, depth=n) for n in depths if n + generated < context))


def key(test: SpeedTest) -> str:
    """Its name in the results, whatever the number of tokens it generates."""
    return f"tg @ d{test.depth}" if test.generate else test.name


def speed_session(
    systems: Sequence[System], tests: Sequence[SpeedTest], rounds: int, number: int, loads: int
) -> dict:
    """Every system in fresh processes: loads one after another, then interleaved rounds of the rest."""
    turned = [*systems[number % len(systems) :], *systems[: number % len(systems)]]
    loaded = load_rounds(turned, loads)
    before = measure_machine()
    commands = {system.name: system.commands["speed"] for system in turned}
    reports = measure({}, tests, rounds=rounds, first_token=FIRST_TOKEN, peers=commands)
    machine = before.best(measure_machine())
    return {
        "machine": {"bandwidth": machine.read_bandwidth, "integer_rate": machine.integer_rate},
        "systems": {
            name: {
                "load": loaded[name],
                "first_token": list(report.first_token.seconds) if report.first_token else [],
                "peak_rss": report.peak_rss,
                "rates": {key(timing.test): list(timing.rates) for timing in report.timings},
            }
            for name, report in reports.items()
        },
    }


def load_rounds(systems: Sequence[System], rounds: int) -> dict[str, list[float]]:
    """Seconds to open each model, one at a time; a first start that fills the page cache is not kept."""
    found: dict[str, list[float]] = {system.name: [] for system in systems}
    for number in range(rounds + 1):
        for system in systems if number % 2 else systems[::-1]:
            with Child(system.name, system.commands["speed"]) as child:
                seconds = child.read()["load_seconds"]
            if number:
                found[system.name].append(seconds)
    return found


def speed_samples(sessions: Sequence[dict]) -> dict[str, dict[str, Samples]]:
    """By column (``pp512``, ``tg @ d64``, first_token, load, peak_rss), then by system; sessions pooled."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for session in sessions:
        for name, found in session["systems"].items():
            columns = {
                **found["rates"],
                "first_token": found["first_token"],
                "load": found["load"],
                "peak_rss": [found["peak_rss"]],
            }
            for column, values in columns.items():
                gathered.setdefault(column, {}).setdefault(name, []).extend(values)
    return {
        column: {name: Samples(tuple(values)) for name, values in systems.items() if values}
        for column, systems in gathered.items()
    }


def bounds(content: dict) -> dict[str, dict[str, float]]:
    """Tokens per second that the machine allows, by column, then by system.

    Decode reads each system's own weights and cache once per token. A prompt needs the model's
    multiplications at the rate of int8 products, whoever makes them.
    """
    machines = [session["machine"] for session in content["speed"]]
    if not machines:
        return {}
    bandwidth = max(m["bandwidth"] for m in machines)
    rate = max(m["integer_rate"] for m in machines)
    columns = {column for s in content["speed"] for f in s["systems"].values() for column in f["rates"]}
    found: dict[str, dict[str, float]] = {}
    for column in columns:
        for name, facts in content["systems"].items():
            if column.startswith("pp"):
                bound = rate / (2 * content["macs"])
            else:
                depth = int(column.rpartition("d")[2]) + GENERATED / 2
                bound = bandwidth / (facts["streamed"] + facts["cache_bytes"] * depth)
            found.setdefault(column, {})[name] = bound
    return found
