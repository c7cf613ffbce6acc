"""Workers of `gpu.py`: what touches the GPU does so in a process of its own, which may die without the rest.

A worker is a script of this folder. It reads one JSON object per line and answers each with one. A request
that raises is answered with ``{"error": ...}``; whether the CUDA context survived that is not known, so the
parent starts a new worker.
"""

import contextlib
import json
import os
import queue
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

_FIRST, _LAST = 100, 300
"""Characters of an error that are kept: what it is comes first, and the reason last."""


class WorkerFailed(Exception):
    """A request was not answered: the error, the end of what the process said, or how long it took."""


class Worker:
    """One script in its own process."""

    def __init__(self, script: str, *arguments: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "LD_LIBRARY_PATH": library_path()},
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, seconds: float, **request: object) -> dict:
        """The answer to ``request``, within ``seconds``. After a WorkerFailed the worker is of no use."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, and that is told below
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        try:
            line = self._lines.get(timeout=max(seconds, 1.0))
        except queue.Empty:
            raise WorkerFailed(f"no answer within {seconds:.0f} s") from None
        if not line:
            raise WorkerFailed(self._last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"ended with {code}: {' / '.join(said[-3:])[-_LAST:] or 'it said nothing'}"


def library_path() -> str:
    """``LD_LIBRARY_PATH`` with the folders of pip's CUDA packages, wherever on the path of modules they are.

    ONNX Runtime's own `preload_dlls` looks beside itself only, and misses those of another environment. cuDNN
    is opened by its name only when a kernel asks for it, as MultiHeadAttention's does.
    """
    roots = dict.fromkeys([*sys.path, *site.getsitepackages()])
    found = [str(path) for root in roots if root for path in sorted(Path(root).glob("nvidia/*/lib"))]
    said = os.environ.get("LD_LIBRARY_PATH")
    return ":".join([*([said] if said else []), *found])


def one_line(text: str) -> str:
    """Start and end of what ONNX Runtime says at length."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _FIRST + _LAST else f"{flat[:_FIRST]} ... {flat[-_LAST:]}"


def serve(answer: Callable[[dict], Mapping[str, object]]) -> None:
    """The worker's side: answer requests until the parent is gone. What libraries print becomes stderr."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = dict(answer(json.loads(line)))
        except Exception as error:
            said = {"error": one_line(f"{type(error).__name__}: {error}")}
        channel.write(json.dumps(said) + "\n")
