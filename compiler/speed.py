"""How fast artifacts are, measured so that a shared machine disturbs all of them alike.

Every configuration lives in its own process (memory and threads apart), and the parent goes round: one run
of each test in each process, in alternating order, as many times as asked. A disturbance then falls on all
configurations, and medians and ratios survive it.
"""

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from onnxforge.compiler.errors import CompileError
from onnxforge.compiler.proof_session import threads as default_threads
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest, Timing

_LEAST_ROUNDS = 2


class MeasurementFailed(CompileError):
    """A measuring process died. The message holds the end of what it said."""

    exit_code = 1


class _Child:
    """One configuration in its own process."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def answer(self, key: str) -> float:
        """The number called ``key`` in the child's next line."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines()
            raise MeasurementFailed(
                f"The process that measured {self._name} ended with {self._process.returncode}: "
                f"{' / '.join(said[-3:]) or 'it said nothing'}. Without measurement there is no proof."
            )
        return float(json.loads(line)[key])

    def ask(self, test: SpeedTest, **options: object) -> float:
        """Run ``test`` once; seconds."""
        self.tell({**asdict(test), **options})
        return self.answer("seconds")

    def tell(self, request: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.answer("seconds")  # raises with what the child said


def measure(
    folders: Mapping[str, Path],
    tests: Sequence[SpeedTest],
    *,
    rounds: int,
    first_token: SpeedTest | None = None,
    sentences: Sequence[str] = (),
    threads: int | None = None,
    seed: int = 0,
    patience: float | None = None,
    peers: Mapping[str, Sequence[str]] | None = None,
    cuda_graph: Mapping[str, bool | None] | None = None,
) -> dict[str, SpeedReport]:
    """Time ``tests`` on every artifact, interleaved; reports by the keys of ``folders``.

    ``first_token`` names the prompt length for the time to first token. ``sentences`` are encoded by tests
    that ask for sentences. Every test is run once before the clocks count. After ``patience`` seconds no
    further round starts, once two have been made. ``peers`` are commands that serve other systems by the
    protocol of :mod:`onnxforge.compiler.speed_child`, measured in the same rounds. ``cuda_graph`` says by
    the keys of ``folders`` what `load` is told of it; nothing, where a key is absent.

    Raises:
        MeasurementFailed: a process died.
    """
    count = threads or default_threads()
    texts = [*sentences]
    recorded = cuda_graph or {}
    with ExitStack() as stack:
        commands = {n: child_command(f, count, seed, recorded.get(n)) for n, f in folders.items()} | dict(
            peers or {}
        )
        children = {n: stack.enter_context(_Child(n, command)) for n, command in commands.items()}
        loads = {name: child.answer("load_seconds") for name, child in children.items()}
        seconds: dict[tuple[str, SpeedTest], list[float]] = {(n, t): [] for n in children for t in tests}
        firsts: dict[str, list[float]] = {name: [] for name in children}
        deadline = time.monotonic() + (patience if patience is not None else math.inf)
        for number in range(-1, rounds):
            if number >= _LEAST_ROUNDS and time.monotonic() > deadline:
                break
            for test in tests:
                for name in _alternating(children, number):
                    spent = children[name].ask(test, texts=texts[: test.sentences], warm=number < 0)
                    seconds[name, test].append(spent)
            if first_token is not None:
                for name in _alternating(children, number):
                    firsts[name].append(children[name].ask(first_token, first_token=True))
        peaks = {}
        for name, child in children.items():
            child.tell({"finish": True})
            peaks[name] = child.answer("peak_rss")
    return {
        name: SpeedReport(
            load_seconds=loads[name],
            peak_rss=int(peaks[name]),
            threads=count,
            timings=tuple(Timing(test, tuple(seconds[name, test][1:])) for test in tests),
            first_token=Timing(first_token, tuple(firsts[name][1:])) if first_token else None,
        )
        for name in children
    }


def child_command(folder: Path, threads: int, seed: int, cuda_graph: bool | None = None) -> list[str]:
    """The command that serves the artifact in ``folder``; ``cuda_graph`` as `load` takes it."""
    command = [sys.executable, "-m", "onnxforge.compiler.speed_child", str(folder), str(threads), str(seed)]
    return command if cuda_graph is None else [*command, str(int(cuda_graph))]


def decoder_tests(prompts: Iterable[int], generate: int, depth: int, context: int) -> tuple[SpeedTest, ...]:
    """Prefill of each length, decode from an empty cache and after ``depth`` tokens; cut to the context."""
    room = max(context - 1, 1)
    lengths = dict.fromkeys(min(p, room) for p in prompts)
    new = max(min(generate, context // 2), 1)
    deep = min(depth, context - new)
    tests = [*(SpeedTest(prompt=n) for n in lengths), SpeedTest(generate=new)]
    if deep > 0:
        tests.append(SpeedTest(generate=new, depth=deep))
    return tuple(tests)


def first_token_test(tests: Sequence[SpeedTest]) -> SpeedTest | None:
    """The longest prefill among ``tests``: the prompt whose first token is awaited."""
    prefills = [t for t in tests if t.prompt and not t.generate and not t.depth]
    return replace(max(prefills, key=lambda t: t.prompt)) if prefills else None


def _alternating(names: Iterable[str], number: int) -> list[str]:
    ordered = list(names)
    return ordered if number % 2 == 0 else ordered[::-1]
