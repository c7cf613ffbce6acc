"""The tables of ``bench --profile``: operators and nodes, their share of the time and of their bound."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.node_profile import NodeTime, Profile, profile
from onnxforge.compiler.roofline import Machine, measure_machine
from onnxforge.compiler.speed_types import SpeedTest

_HEADER = ("calls", "ms", "share", "GOP/s", "GB/s", "of its bound")
_RIGHT = (1, 2, 3, 4, 5, 6)


def profile_page(folder: Path, tests: Sequence[SpeedTest], threads: int, top: int) -> str:
    """Markdown: for each test its operators, and its ``top`` nodes."""
    machine = measure_machine(threads)
    parts = [
        f"Measured peaks of this machine, {threads} threads: {machine.read_bandwidth / 1e9:.0f} GB/s read, "
        f"{machine.float_rate / 1e9:,.0f} GOP/s in fp32, {machine.integer_rate / 1e9:,.0f} in int8. A "
        "kernel's bound is what it multiplies or what it reads (weights, cache) at these, whichever takes "
        "longer. Times are with the profiler on.\n"
    ]
    for found in profile(folder, tests, threads):
        parts += _test(found, machine, top)
    return "\n".join(parts)


def profile_json(folder: Path, tests: Sequence[SpeedTest], threads: int) -> str:
    """The same as JSON, every node of it; times in seconds."""
    machine = measure_machine(threads)
    found = [
        {
            "test": one.test.name,
            "seconds": one.seconds,
            "between": one.between,
            "nodes": [{**asdict(node), "bound": node.bound(machine)} for node in one.nodes],
        }
        for one in profile(folder, tests, threads)
    ]
    return json.dumps({"machine": asdict(machine), "tests": found}, indent=2)


def _test(found: Profile, machine: Machine, top: int) -> Iterator[str]:
    rate = found.repeats * found.test.work / found.seconds
    unit = "sentences" if found.test.sentences else "tokens"
    yield f"## {found.test.name}: {1e3 * found.seconds:,.1f} ms, {rate:,.0f} {unit}/s\n"
    rows = [_row(node.operator, node, found, machine) for node in found.by_operator()]
    rows.append(
        ("between kernels", "", f"{1e3 * found.between:.2f}", _share(found.between, found), "", "", "")
    )
    yield table(("operator", *_HEADER), rows, right=_RIGHT)
    if top:
        nodes = [_row(node.name, node, found, machine) for node in found.nodes[:top]]
        yield table(("node", *_HEADER), nodes, right=_RIGHT)


def _row(name: str, node: NodeTime, found: Profile, machine: Machine) -> tuple[str, ...]:
    seconds, bound = node.seconds or 1e-9, node.bound(machine)
    return (
        name,
        f"{node.calls}",
        f"{1e3 * node.seconds:.2f}",
        _share(node.seconds, found),
        f"{2e-9 * node.macs / seconds:,.0f}" if node.macs else "",
        f"{1e-9 * node.read_bytes / seconds:,.1f}" if node.read_bytes else "",
        f"{bound / seconds:.0%}" if bound else "",
    )


def _share(seconds: float, found: Profile) -> str:
    return f"{seconds / found.seconds:.1%}"
