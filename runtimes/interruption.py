"""Stopping a request: cancelled by the caller, or out of time, also in the middle of a run."""

import threading
import time
from types import TracebackType
from typing import Literal, Self

import numpy as np

from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.session import new_run_options

InterruptReason = Literal["cancelled", "deadline"]


class CancelToken:
    """Cancels every request it was given to, from any thread, at once: a run in flight is ended too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = False
        self._requests: list[Interruption] = []

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self) -> None:
        """Cancel; a second call changes nothing."""
        with self._lock:
            self._cancelled = True
            for request in self._requests:
                request.interrupt("cancelled")

    def _watch(self, request: "Interruption") -> None:
        with self._lock:
            self._requests.append(request)
            if self._cancelled:
                request.interrupt("cancelled")

    def _forget(self, request: "Interruption") -> None:
        with self._lock:
            self._requests.remove(request)


class Interruption:
    """One request's run options, watched by its cancel token and its deadline while the request is open."""

    def __init__(self, cancel: CancelToken | None, deadline: float | None) -> None:
        if cancel is not None and not isinstance(cancel, CancelToken):
            raise RequestError(
                f"cancel is {cancel!r:.60}; pass a CancelToken, and call its cancel() to stop."
            )
        self.run_options = new_run_options()
        self.reason: InterruptReason | None = None
        self._cancel = cancel
        self._ends = None if deadline is None else _end(deadline)
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        if self._cancel is not None:
            self._cancel._watch(self)
        if self._ends is not None:
            left = max(self._ends - time.monotonic(), 0.0)
            self._timer = threading.Timer(left, self.interrupt, args=("deadline",))
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._cancel is not None:
            self._cancel._forget(self)

    def interrupt(self, reason: InterruptReason) -> None:
        """End the request; the first reason counts."""
        if self.reason is None:
            self.reason = reason
        self.run_options.terminate = True


def _end(deadline: float) -> float | None:
    """The moment when ``deadline`` seconds are over; None when that is later than any timer can wait."""
    valid = isinstance(deadline, int | float | np.integer | np.floating) and not isinstance(deadline, bool)
    if not valid or not deadline > 0:  # NaN too
        raise RequestError(f"deadline is {deadline!r:.60}; pass seconds above 0.")
    return None if deadline >= threading.TIMEOUT_MAX else time.monotonic() + float(deadline)
