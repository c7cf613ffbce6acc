"""Where a run's time goes, node by node, and how near each kernel comes to the machine's bound.

ONNX Runtime writes down when each kernel began and ended. What a kernel had to compute and to read follows
from the graph as loaded; the bound is the longer of both at the measured peak rates (the roofline model:
Williams, Waterman, Patterson, CACM 2009).
"""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import onnxruntime as ort

from onnxforge.compiler.as_loaded import graph_as_loaded
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.node_costs import ATTENTIONS, NodeCost, node_costs, query_width
from onnxforge.compiler.roofline import Machine
from onnxforge.compiler.speed_types import SpeedTest
from onnxforge.runtimes.artifact import DECODER_TASK, Manifest, read_manifest
from onnxforge.runtimes.decoder_graph import read_graph
from onnxforge.runtimes.decoder_state import new_state
from onnxforge.runtimes.prompt_chunk import prompt_chunk
from onnxforge.runtimes.session import device_of, open_session, options_for
from onnxforge.runtimes.strict_json import read_optional_json

_SUFFIX = "_kernel_time"
_LENGTH, _REPEATS, _FEW_IDS = 64, 5, 100
"""Of an encoder's texts: tokens, how often they are read, and ids where nobody says how many there are."""
_WARM_STEPS = 8


@dataclass(frozen=True)
class NodeTime:
    """One node over all measured runs of a test."""

    name: str
    operator: str
    calls: int
    seconds: float
    macs: int
    integer: bool
    read_bytes: int
    """Weights and cache that had to be read, whatever else went through."""

    def bound(self, machine: Machine) -> float:
        """Seconds below which this machine cannot do it; 0 where no bound is known."""
        rate = machine.integer_rate if self.integer else machine.float_rate
        return max(2 * self.macs / rate, self.read_bytes / machine.read_bandwidth)


@dataclass(frozen=True)
class Profile:
    """One test's nodes, longest first."""

    test: SpeedTest
    seconds: float
    """Of all its runs, with the writing of the profile."""
    repeats: int
    """How often the test was made."""
    nodes: tuple[NodeTime, ...]

    @property
    def between(self) -> float:
        """Seconds in no kernel: feeding, fetching, and going from node to node."""
        return max(self.seconds - sum(node.seconds for node in self.nodes), 0.0)

    def by_operator(self) -> tuple[NodeTime, ...]:
        """Nodes of one operator as one, longest first."""
        groups: dict[tuple[str, bool], list[NodeTime]] = {}
        for node in self.nodes:
            groups.setdefault((node.operator, node.integer), []).append(node)
        return _longest_first(
            NodeTime(
                "",
                operator,
                sum(node.calls for node in nodes),
                sum(node.seconds for node in nodes),
                sum(node.macs for node in nodes),
                integer,
                sum(node.read_bytes for node in nodes),
            )
            for (operator, integer), nodes in groups.items()
        )


@dataclass(frozen=True)
class _Run:
    """Tokens that a run reads of each sequence, and those before them."""

    tokens: int
    past: int
    sequences: int = 1


class _Event(TypedDict):
    name: str
    ts: int
    """Microseconds, as ``dur``."""
    dur: int
    args: Mapping[str, Any]


def profile(folder: Path, tests: Sequence[SpeedTest], threads: int) -> tuple[Profile, ...]:
    """Run ``tests`` on the artifact in ``folder``, each in a session of its own; random tokens.

    Raises:
        RequestError, ArtifactError: this machine cannot run it.
    """
    manifest = read_manifest(folder)
    path = folder / manifest.graph
    costs = node_costs(graph_as_loaded(path, manifest.provider, manifest.session))
    return tuple(_profiled(folder, manifest, test, threads, costs) for test in tests)


def _profiled(
    folder: Path, manifest: Manifest, test: SpeedTest, threads: int, costs: Mapping[str, NodeCost]
) -> Profile:
    path, provider = folder / manifest.graph, manifest.provider
    with tempfile.TemporaryDirectory(prefix="onnxforge-profile-") as temp:
        options = options_for(provider, manifest)
        prefix = Path(temp) / "profile"
        session = open_session(path, provider, manifest.session, threads, options, profile=prefix)
        work = _decode if manifest.task == DECODER_TASK else _encode
        runs = work(folder, manifest, test, session)
        events = json.loads(Path(session.end_profiling()).read_text())
    return _read(test, events, runs, costs)


def _decode(folder: Path, manifest: Manifest, test: SpeedTest, session: ort.InferenceSession) -> list[_Run]:
    """Warm up, then do what is timed; the runs that are."""
    size = read_optional_json(folder / "config.json").get("vocab_size")
    vocabulary = size if isinstance(size, int) else None
    device, context = device_of(manifest.provider), manifest.context_length
    graph = read_graph(session, device, context, manifest.shared_cache, vocabulary)
    total = test.depth + test.prompt + test.generate
    tokens = np.random.default_rng(0).integers(0, graph.vocabulary, total)
    chunk = prompt_chunk(graph, 1)
    for warm in (True, False):
        state = new_state(graph, 1, total)
        if test.depth:
            state.prompt([tokens[: test.depth]])
        if test.prompt:
            state.prompt([tokens[test.depth : test.depth + test.prompt]])
        for token in tokens[test.depth + test.prompt :][: _WARM_STEPS if warm else None]:
            state.step(token.reshape(1, 1))
    starts = range(0, test.prompt, chunk)
    read = [_Run(min(chunk, test.prompt - start), test.depth + start) for start in starts]
    return read + [_Run(1, test.depth + test.prompt + step) for step in range(test.generate)]


def _encode(folder: Path, manifest: Manifest, test: SpeedTest, session: ort.InferenceSession) -> list[_Run]:
    length = min(_LENGTH, manifest.context_length)
    size = read_optional_json(folder / "config.json").get("vocab_size")
    below = size if isinstance(size, int) else _FEW_IDS
    ids = np.random.default_rng(0).integers(0, below, (test.sentences, length))
    feeds = whole_sequence_feeds(session.get_inputs(), ids, np.ones_like(ids), str(folder))
    for _ in range(_REPEATS + 1):
        session.run(None, feeds)
    return [_Run(length, 0, test.sentences)] * _REPEATS


def _read(
    test: SpeedTest,
    events: Sequence[_Event],
    runs: Sequence[_Run],
    costs: Mapping[str, NodeCost],
) -> Profile:
    """The last ``runs`` of a profile, as ONNX Runtime writes it (the format is Chrome's trace events)."""
    spans = [event for event in events if event["name"] == "model_run"][-len(runs) :]
    kernels = [event for event in events if event["name"].endswith(_SUFFIX)]
    found: dict[str, NodeTime] = {}
    for span, run in zip(spans, runs, strict=True):
        end = span["ts"] + span["dur"]
        for event in kernels:
            if span["ts"] <= event["ts"] < end:
                _count(found, event, run, costs)
    seconds = 1e-6 * sum(span["dur"] for span in spans)
    return Profile(test, seconds, _REPEATS if test.sentences else 1, _longest_first(found.values()))


def _count(found: dict[str, NodeTime], event: _Event, run: _Run, costs: Mapping[str, NodeCost]) -> None:
    name, said = event["name"].removesuffix(_SUFFIX), event["args"]
    cost = costs.get(name) or NodeCost(said["op_name"])
    if said["op_name"] in ATTENTIONS:
        (query,) = said["input_type_shape"][0].values()
        cost = replace(cost, attention_width=query_width(query))
    (shape,) = said["output_type_shape"][0].values()
    rows = math.prod(shape[:-1])
    old = found.get(name) or NodeTime(name, cost.operator, 0, 0.0, 0, cost.integer, 0)
    found[name] = replace(
        old,
        calls=old.calls + 1,
        seconds=old.seconds + 1e-6 * event["dur"],
        macs=old.macs + cost.macs(rows, run.tokens, run.past, run.sequences),
        read_bytes=old.read_bytes + cost.read_bytes(run.tokens, run.past),
    )


def _longest_first(nodes: Iterable[NodeTime]) -> tuple[NodeTime, ...]:
    return tuple(sorted(nodes, key=lambda node: (-node.seconds, node.name)))
