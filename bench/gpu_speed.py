"""How fast decoders are on the device: prompts and steps of every target, side by side."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpu_hour import Hour
from gpu_process import Worker, WorkerFailed

BASE = "cuda-fp16"
_LOADING = 120.0
_CELL = 60.0
"""Seconds after which a worker is given up."""


@dataclass(frozen=True)
class Cell:
    """One load: ``batch`` rows with ``context`` tokens each before the steps begin."""

    batch: int
    context: int

    @property
    def name(self) -> str:
        """As in ``8x512``."""
        return f"{self.batch}x{self.context}"


@dataclass(frozen=True, eq=False)  # eq=False: it is a key, and its options are no hashable mapping
class Variant:
    """A target, with its own session options or others."""

    target: str
    note: str = ""
    session: Mapping[str, str] | None = None
    """None: the artifact's own."""
    cuda_graph: bool | None = False
    """Steps are recorded once and replayed; None: as the artifact has it."""

    @property
    def name(self) -> str:
        """The target, and what is different."""
        return f"{self.target} {self.note}".strip()


_ALL = (BASE, "cuda-int8", "cuda-int4")
REPLAYED = "CUDA graph"
"""The note of variants whose steps are replayed."""
PLAIN = tuple(map(Variant, _ALL))
VARIANTS = (
    *PLAIN,
    *(Variant(target, REPLAYED, cuda_graph=True) for target in _ALL),
    *(Variant(target, "mixed GEMM off", {}) for target in _ALL[1:]),
)
SOON = (Cell(1, 512), Cell(1, 128), Cell(8, 512), Cell(32, 512))
REST = (Cell(1, 1024), Cell(1, 4096), Cell(8, 128), Cell(32, 128), Cell(8, 1024), Cell(32, 1024))
DEEP = (Cell(8, 4096), Cell(32, 4096))
"""With fresh workers, since none gives memory back: a process has 4 to 8 GB of cache here at 1.5B."""
REHEARSED = (Cell(1, 32), Cell(2, 16))


@dataclass
class Runners:
    """One worker for each variant, all of them loaded at once, so that rounds can take turns."""

    hour: Hour
    model: str
    workers: dict[Variant, Worker] = field(default_factory=dict)

    def start(self, variants: Sequence[Variant]) -> None:
        """Load what can be loaded; the others are recorded as failed."""
        for variant in variants:
            if self.hour.over():
                return
            folder = _folder(self.hour, self.model, variant)
            if folder is None:
                continue
            worker = Worker("gpu_model_child.py", str(folder), self.hour.device)
            key = f"load/{self.model}/{variant.name}"
            try:
                found = worker.ask(_LOADING, do="load", cuda_graph=variant.cuda_graph)
            except WorkerFailed as failure:
                self.hour.rows.add(key, error=str(failure))
                self.hour.tell(f"{key}: {failure}")
                worker.close()
                continue
            self.hour.rows.add(key, model=self.model, variant=variant.name, **found)
            self.workers[variant] = worker

    def close(self) -> None:
        """End all of them."""
        for worker in self.workers.values():
            worker.close()
        self.workers.clear()


def measure_speed(
    hour: Hour, model: str, variants: Sequence[Variant], cells: Sequence[Cell], rounds: int, steps: int
) -> None:
    """Every cell that has not all of its rows; its variants are measured together, in alternating order."""

    def complete(cell: Cell, among: Iterable[Variant]) -> bool:
        return all(hour.rows.has(_key(model, cell, variant)) for variant in among)

    if hour.over() or all(complete(cell, variants) for cell in cells):
        return
    hour.tell(f"speed of {model}: {', '.join(variant.name for variant in variants)}")
    runners = Runners(hour, model)
    try:
        runners.start(variants)
        for cell in cells:
            if hour.over():
                return
            if not complete(cell, runners.workers):
                _measure_cell(hour, runners, cell, rounds, steps)
    finally:
        runners.close()


def _measure_cell(hour: Hour, runners: Runners, cell: Cell, rounds: int, steps: int) -> None:
    hour.tell(f"{runners.model} {cell.name}")
    answers: dict[Variant, list[dict]] = {variant: [] for variant in runners.workers}
    for number in range(-1, rounds):  # the first one wakes all of them
        for variant in list(runners.workers)[:: 1 if number % 2 else -1]:
            if hour.over():
                return
            try:
                limit = min(_CELL, hour.left())
                asked = {"batch": cell.batch, "context": cell.context, "steps": steps}
                found = runners.workers[variant].ask(limit, do="cell", **asked)
            except WorkerFailed as failure:
                key = _key(runners.model, cell, variant)
                hour.rows.add(key, error=str(failure))
                hour.tell(f"{key}: {failure}")
                runners.workers.pop(variant).close()
                continue
            answers[variant].append(found)
    for variant in runners.workers:
        values = _summary(answers[variant][1:], cell)
        said = {line for answer in answers[variant] for line in answer["warnings"]}
        key = _key(runners.model, cell, variant)
        hour.rows.add(
            key,
            model=runners.model,
            variant=variant.name,
            target=variant.target,
            batch=cell.batch,
            context=cell.context,
            rounds=rounds,
            steps=steps,
            warnings=sorted(said),
            **values,
        )


def _summary(answers: Sequence[dict], cell: Cell) -> dict[str, object]:
    """Rates by the medians of rounds; raw seconds stay beside them."""
    prefills = [answer["prefill_seconds"] for answer in answers]
    steps = [statistics.median(answer["step_seconds"]) for answer in answers]
    return {
        "prefill_seconds": prefills,
        "step_seconds": steps,
        "prefill_rate": cell.batch * cell.context / statistics.median(prefills),
        "decode_rate": cell.batch / statistics.median(steps),
        "slowest_step": max(max(answer["step_seconds"]) for answer in answers),
        "cache_bytes": answers[-1]["cache_bytes"],
        "own_bytes": answers[-1]["own_bytes"],
    }


def _folder(hour: Hour, model: str, variant: Variant) -> Path | None:
    folder = hour.artifact(model, variant.target)
    if folder is None or variant.session is None:
        return folder
    return hour.variant(folder, variant.name.replace(" ", "-"), variant.session)


def _key(model: str, cell: Cell, variant: Variant) -> str:
    return f"speed/{model}/{cell.name}/{variant.name}"
