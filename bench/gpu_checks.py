"""Whether what is fast is right: quality on the device, rows, the loop in the graph. And encoders' speed."""

import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gpu_hour import Hour
from gpu_process import Worker, WorkerFailed

DECODER, ENCODER = "smollm2-135m", "minilm-l6"
_BASE = "cpu-fp32"
_LONG = 240.0
"""Seconds for what runs on the CPU as well."""


def measure_quality(hour: Hour, model: str, targets: Sequence[str], windows: int, length: int) -> None:
    """Each target's artifact on the device, held against `cpu-fp32` and against itself on the CPU."""
    missing = [target for target in targets if not hour.rows.has(f"quality/{model}/{target}")]
    if not missing or hour.over():
        return
    reference = hour.artifact(model, _BASE)
    hour.tell(f"quality of {model}")
    worker = _judge(reference, windows, length)
    try:
        for target in missing:
            folder = hour.artifact(model, target)
            if folder is None or hour.over():
                continue
            key, provider = f"quality/{model}/{target}", _provider(hour, target)
            try:
                found = worker.ask(min(_LONG, hour.left()), folder=str(folder), provider=provider)
            except WorkerFailed as failure:
                _failed(hour, key, failure)
                worker.close()
                worker = _judge(reference, windows, length)
                continue
            hour.rows.add(key, model=model, target=target, **found)
    finally:
        worker.close()


def measure_loops(hour: Hour, model: str, targets: Sequence[str], new: int, rounds: int) -> None:
    """The loop in the graph against the runtime's, without drafts and with eight."""
    for target in targets:
        keys = {drafts: f"loop/{model}/{target}/{drafts}" for drafts in (0, 8)}
        missing = [drafts for drafts in keys if not hour.rows.has(keys[drafts])]
        with _loaded(hour, model, target, bool(missing), keys[0]) as worker:
            for drafts in missing if worker else ():
                asked = {
                    "prompt": 64,
                    "new": new,
                    "drafts": drafts,
                    "rounds": rounds,
                    "text": model == DECODER,
                }
                found = _asked(hour, worker, keys[drafts], "loop", **asked)
                if found is None:
                    break
                behind = {name: statistics.median(s) for name, s in found["seconds"].items()}
                rates = {name: (new - 1) / s if s > 0 else 0.0 for name, s in behind.items()}
                facts = {"model": model, "target": target, "drafts": drafts, "rates": rates}
                hour.rows.add(keys[drafts], **facts, **found)


def measure_independence(hour: Hour, model: str, targets: Sequence[str], positions: int) -> None:
    """A step of eight tokens against eight steps of one."""
    for target in targets:
        key = f"independence/{model}/{target}"
        with _loaded(hour, model, target, not hour.rows.has(key), key) as worker:
            if worker:
                found = _asked(hour, worker, key, "independence", positions=positions)
                if found is not None:
                    hour.rows.add(key, model=model, target=target, **found)


def measure_encoders(
    hour: Hour, model: str, targets: Sequence[str], cells: Sequence[tuple[int, int]], runs: int
) -> None:
    """Sentences per second; ``cells`` are (sentences in a batch, tokens of each)."""
    for target in targets:
        keys = {(batch, tokens): f"encode/{model}/{target}/{batch}x{tokens}" for batch, tokens in cells}
        missing = [cell for cell in cells if not hour.rows.has(keys[cell])]
        with _loaded(hour, model, target, bool(missing), keys[cells[0]]) as worker:
            for batch, tokens in missing if worker else ():
                key = keys[batch, tokens]
                found = _asked(hour, worker, key, "encode", batch=batch, tokens=tokens, runs=runs)
                if found is None:
                    break
                facts = {"model": model, "target": target, "batch": batch, "tokens": tokens}
                rate = batch / statistics.median(found["seconds"])
                hour.rows.add(key, **facts, rate=rate, **found)


@contextmanager
def _loaded(hour: Hour, model: str, target: str, wanted: bool, key: str) -> Iterator[Worker | None]:
    """A worker with the artifact, or None where there is nothing to do or it does not load."""
    folder = hour.artifact(model, target) if wanted and not hour.over() else None
    if folder is None:
        yield None
        return
    hour.tell(key)
    with Worker("gpu_model_child.py", str(folder), _provider(hour, target)) as worker:
        found = _asked(hour, worker, key, "load")
        if found is not None:
            hour.rows.add(f"load/{model}/{target}", model=model, variant=target, **found)
        yield worker if found is not None else None


def _asked(hour: Hour, worker: Worker, key: str, verb: str, **request: object) -> dict | None:
    try:
        return worker.ask(min(_LONG, max(hour.left(), 1.0)), do=verb, **request)
    except WorkerFailed as failure:
        _failed(hour, key, failure)
        return None


def _failed(hour: Hour, key: str, failure: WorkerFailed) -> None:
    hour.rows.add(key, error=str(failure))
    hour.tell(f"{key}: {failure}")


def _judge(reference: Path | None, windows: int, length: int) -> Worker:
    return Worker("gpu_quality_child.py", str(reference or "none"), str(windows), str(length))


def _provider(hour: Hour, target: str) -> str:
    return "tensorrt" if target.startswith("trt-") and hour.device == "cuda" else hour.device
