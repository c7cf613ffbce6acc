"""Which graph form of a product is fast, at which number of rows: forms of `gpu_forms.py` side by side."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from gpu_forms import FORMS, Form, copies_for
from gpu_hour import Hour
from gpu_process import Worker, WorkerFailed

ROWS = (1, 2, 4, 8, 16, 32, 128, 512, 2048)
SHAPES = ((2048, 8192), (1536, 8960), (2048, 2048), (8192, 2048), (2048, 49152))
"""(K, N): of models of 1 to 2 billion parameters; the last is a head's."""
REHEARSED_ROWS, REHEARSED_SHAPES = (1, 16, 64), ((256, 512),)
_CACHE_BEATEN = 384 << 20
"""Bytes that the float16 weights of one form have together; 4-bit ones still exceed the last cache."""
_LOADING, _TIMING = 120.0, 60.0
_MOST, _BUDGET = 40, 0.08
"""Runs and seconds of one round."""


@dataclass(frozen=True)
class Shape:
    """A weight, and how many of it are multiplied with in one run."""

    inner: int
    columns: int
    copies: int

    def key(self, form: Form, rows: int) -> str:
        """Of the row that says how the form fared with ``rows`` rows."""
        return f"product/{self.inner}x{self.columns}/{rows}/{form.key}"


@dataclass
class _Bench:
    """The worker of one shape, and the forms that it has open."""

    hour: Hour
    shape: Shape
    worker: Worker
    open: dict[str, Form] = field(default_factory=dict)

    def start(self, forms: Sequence[Form]) -> None:
        """Open them. A form that does not open takes its process with it, and the others begin anew."""
        self.open.clear()
        for form in forms:
            if self.hour.over():
                return
            known = f"form/{form.key}"
            try:
                found = self.worker.ask(
                    _LOADING, do="open", form=form.key, facts=not self.hour.rows.has(known)
                )
            except WorkerFailed as failure:
                self.record(known, failure)
                self.renew()
                self.start([other for other in forms if other != form])
                return
            if "operators" in found:
                self.hour.rows.add(known, form=form.key, summary=form.summary, **found)
            self.open[form.key] = form

    def record(self, key: str, failure: WorkerFailed) -> None:
        """Keep what went wrong."""
        self.hour.rows.add(key, error=str(failure))
        self.hour.tell(f"{key}: {failure}")

    def works(self, rows: int) -> bool:
        """Whether the process still computes: some failures leave the CUDA context as it was."""
        base = FORMS[0].key
        try:
            return base in self.open and bool(
                self.worker.ask(_TIMING, do="time", form=base, rows=rows, most=5, budget=0.0)
            )
        except WorkerFailed:
            return False

    def renew(self) -> None:
        """A new process, in which nothing is open."""
        self.worker.close()
        self.worker = _worker(self.hour, self.shape)


def measure_products(
    hour: Hour, shapes: Sequence[tuple[int, int]], counts: Sequence[int], rounds: int
) -> None:
    """Every (K, N) and M that has not all of its rows."""
    for inner, columns in shapes:
        shape = Shape(inner, columns, 3 if hour.quick else copies_for(inner, columns, _CACHE_BEATEN))
        missing = [rows for rows in counts if not all(hour.rows.has(shape.key(form, rows)) for form in FORMS)]
        if not missing or hour.over():
            continue
        hour.tell(f"products {inner}x{columns}, {shape.copies} weights")
        bench = _Bench(hour, shape, _worker(hour, shape))
        try:
            bench.start(FORMS)
            for rows in missing:
                _measure_rows(bench, rows, rounds)
        finally:
            bench.worker.close()


def _measure_rows(bench: _Bench, rows: int, rounds: int) -> None:
    answers: dict[str, list[dict]] = {key: [] for key in bench.open}
    failed: set[str] = set()
    for number in range(rounds):
        for form in list(bench.open.values())[:: -1 if number % 2 else 1]:
            if bench.hour.over() or form.key in failed:
                continue
            limits = {"most": _MOST, "budget": _BUDGET}
            try:
                found = bench.worker.ask(_TIMING, do="time", form=form.key, rows=rows, **limits)
            except WorkerFailed as failure:
                failed.add(form.key)
                bench.record(bench.shape.key(form, rows), failure)
                if not bench.works(rows):
                    bench.renew()
                    bench.start([other for key, other in bench.open.items() if key != form.key])
                continue
            answers[form.key].append(found)
    for form in bench.open.values():
        if len(answers[form.key]) == rounds:
            facts = {"form": form.key, "rows": rows, **asdict(bench.shape)}
            bench.hour.rows.add(bench.shape.key(form, rows), **facts, **_summary(answers[form.key]))


def _summary(answers: Sequence[dict]) -> dict[str, object]:
    """Medians of the rounds; ``ms`` is the replayed graph's where there is one, since launches cost alike."""
    found: dict[str, object] = {}
    for name in ("run", "graph"):
        values = [answer[f"{name}_ms"] for answer in answers if f"{name}_ms" in answer]
        if values:
            found |= {f"{name}_ms": statistics.median(values), f"{name}_rounds": values}
            found[f"{name}_error"] = answers[0][f"{name}_error"]
    refused = [answer["no_graph"] for answer in answers if "no_graph" in answer]
    name = "graph" if "graph_ms" in found else "run"
    found |= {"no_graph": refused[0]} if refused else {}
    return found | {"ms": found[f"{name}_ms"], "error_of": found[f"{name}_error"]}


def _worker(hour: Hour, shape: Shape) -> Worker:
    numbers = (shape.inner, shape.columns, shape.copies)
    return Worker("gpu_forms_child.py", hour.device, *map(str, numbers))
