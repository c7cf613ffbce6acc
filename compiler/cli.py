"""The command line: two console scripts, every verb, and how a failure becomes one paragraph."""

import contextlib
import gc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import typer
from typer.main import get_command

from onnxforge.compiler.cmd_bench import bench
from onnxforge.compiler.cmd_chat import chat
from onnxforge.compiler.cmd_compile import compile_
from onnxforge.compiler.cmd_doctor import doctor
from onnxforge.compiler.cmd_embed import embed
from onnxforge.compiler.cmd_eval import eval_
from onnxforge.compiler.cmd_inspect import inspect
from onnxforge.compiler.cmd_run import run
from onnxforge.compiler.cmd_targets import targets
from onnxforge.compiler.cmd_verify import verify
from onnxforge.compiler.streams import OutputLost, guard_streams
from onnxforge.compiler.usage import WrongUsage

_VERBS: Mapping[str, Callable[..., None]] = {
    "compile": compile_,
    "run": run,
    "chat": chat,
    "embed": embed,
    "bench": bench,
    "eval": eval_,
    "inspect": inspect,
    "verify": verify,
    "targets": targets,
    "doctor": doctor,
}
_INTERRUPTED, _TERMINATED = 128 + signal.SIGINT, 128 + signal.SIGTERM
_AGAIN_AFTER = 0.02
"""Seconds: a destructor takes less."""


def main() -> None:
    """``onnxforge VERB ...``."""
    _prepare()
    app = _app("Compile transformer models to ONNX, prove the result, and run it.")
    for name, verb in _VERBS.items():
        app.command(name)(verb)
    _leave(run_app(app, sys.argv[1:]))


def compile_main() -> None:
    """``compile MODEL ...``: the same as ``onnxforge compile``."""
    _prepare()
    _leave(run_verb("compile", sys.argv[1:]))


def _prepare() -> None:
    """What holds for a whole process, so not for a caller of :func:`run_verb`.

    Look for garbage cycles less often: torch and transformers are half a million objects that stay, and a
    trace makes as many more. The usual thresholds cost a compile 14% of its time, and save it 3 MB.
    """
    gc.set_threshold(200_000, 20, 100)
    guard_streams()
    signal.signal(signal.SIGTERM, _terminated)
    sys.unraisablehook = _unraisable


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Send a signal again whose exception went down with a destructor that it happened to meet.

    Python drops what is raised in ``__del__``: a Ctrl-C would be gone, and the verb would go on. It comes a
    little later, since in here it would be dropped once more, and to the main thread, which it has to wake.
    """
    again = {KeyboardInterrupt: signal.SIGINT, SystemExit: signal.SIGTERM}.get(lost.exc_type)
    if again is None:
        sys.__unraisablehook__(lost)
        return
    main = threading.main_thread().ident
    timer = threading.Timer(_AGAIN_AFTER, signal.pthread_kill, [main, again])
    timer.daemon = True
    timer.start()


def _terminated(*_: object) -> None:
    """Leave as on Ctrl-C, so that the staging folder goes too."""
    raise SystemExit(_TERMINATED)


def _leave(code: int) -> NoReturn:
    """End the process at once. Everything is published and synced by now, and an interpreter that takes
    torch's half a million objects apart first keeps the user waiting for two to three seconds more."""
    sys.stderr.flush()
    os._exit(code)


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Run one verb with the rest of its command line and return the exit code."""
    app = _app("")
    app.command(name)(_VERBS[name])
    return run_app(app, arguments, f"onnxforge {name}")


def run_app(app: typer.Typer, arguments: Sequence[str], name: str = "onnxforge") -> int:
    """Run ``app`` and return its exit code; failures go to stderr as one paragraph (``--debug`` raises them).

    With ``--json`` the failure goes to stdout too, as ``{"error": {"kind", "message", "exit_code"}}``.
    """
    code = 0
    try:
        code = _outcome(app, arguments, name)
        sys.stdout.flush()
    except OutputLost as lost:
        if not lost.reader_left and not code:  # one paragraph: the first failure is the one to tell
            print(f"error: {lost}", file=sys.stderr)
        return code or lost.exit_code
    return code


def _outcome(app: typer.Typer, arguments: Sequence[str], name: str) -> int:
    try:
        # Not app(): it tells of usage errors, broken pipes and interrupts in its own way.
        command = get_command(app)
        with command.make_context(name, list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except SystemExit as done:
        if done.code == _TERMINATED:
            _tell_interrupt("terminated", done)
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt as interrupt:
        _tell_interrupt("interrupted", interrupt)
        return _INTERRUPTED
    except OutputLost:
        raise
    except Exception as error:
        if "--debug" in arguments and not isinstance(error, WrongUsage):
            raise
        return _report(error, as_json="--json" in arguments)
    return 0


def _tell_interrupt(what: str, error: BaseException) -> None:
    """One line, with what the verb noted about the state of things."""
    print("; ".join([what, *getattr(error, "__notes__", ())]), file=sys.stderr)


def _app(text: str) -> typer.Typer:
    return typer.Typer(
        help=text or None,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _report(error: Exception, *, as_json: bool) -> int:
    from onnxforge.compiler.failures import explain

    failure = explain(error)
    if not failure.message:
        return failure.exit_code  # no arguments at all: typer has shown its help
    print(f"error: {failure.message}", file=sys.stderr)
    if as_json:
        content = {"kind": failure.kind, "message": failure.message, "exit_code": failure.exit_code}
        with contextlib.suppress(OutputLost):
            print(json.dumps({"error": content}), flush=True)
    return failure.exit_code
