"""The three standard streams, when one of them is closed, full, or nobody reads it any more."""

import io
import os
import sys
from typing import TextIO

from onnxforge.compiler.errors import CompileError


class OutputLost(CompileError):
    """What was printed on stdout cannot get there."""

    reader_left = False


class ReaderLeft(OutputLost):
    """Whoever read stdout has gone, as in ``onnxforge run ... | head``. That is no failure."""

    exit_code = 0
    reader_left = True


class _Stdout(io.FileIO):
    """Tells its own failures from those of every other file."""

    def write(self, data: object, /) -> int | None:  # type: ignore[override]  # a buffer, which 3.11 cannot say
        try:
            return super().write(data)  # type: ignore[arg-type]
        except BrokenPipeError as error:
            raise ReaderLeft("Nobody reads stdout.") from error
        except OSError as error:
            raise OutputLost(
                f"Cannot write the result to stdout: {error.strerror}. Send it elsewhere, or make room there."
            ) from error


class _Stderr(io.FileIO):
    """Never fails: prose that cannot be read must not stop the work it tells of."""

    def write(self, data: object, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def guard_streams() -> None:
    """Give closed streams the null device, and let stdout and stderr fail as their classes say.

    Python leaves None for a stream that was closed. The null device takes the stream's own number, in this
    order, so that no file opened later is mistaken for it by a library.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = _rewired(_Stdout, sys.stdout)
    sys.stderr = _rewired(_Stderr, sys.stderr)


def _rewired(kind: type[io.FileIO], stream: TextIO | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w")
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody's own, as under a test
    raw = kind(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),  # PYTHONUNBUFFERED asks for the first
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
