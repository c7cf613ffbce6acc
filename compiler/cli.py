"""The command line: two console scripts, every verb, and how a failure becomes one paragraph."""

import contextlib
import gc
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import typer

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


def main() -> None:
    """``onnxforge VERB ...``."""
    _collect_rarely()
    app = _app("Compile transformer models to ONNX, prove the result, and run it.")
    for name, verb in _VERBS.items():
        app.command(name)(verb)
    _leave(run_app(app, sys.argv[1:]))


def compile_main() -> None:
    """``compile MODEL ...``: the same as ``onnxforge compile``."""
    _collect_rarely()
    _leave(run_verb("compile", sys.argv[1:]))


def _collect_rarely() -> None:
    """Look for garbage cycles less often. torch and transformers are half a million objects that stay, and
    a trace makes as many more: the usual thresholds cost a compile 14% of its time, and save it 3 MB."""
    gc.set_threshold(200_000, 20, 100)


def _leave(code: int) -> NoReturn:
    """End the process at once. Everything is published and synced by now, and an interpreter that takes
    torch's half a million objects apart first keeps the user waiting for two to three seconds more."""
    with contextlib.suppress(BrokenPipeError):  # the reader may have left: ``onnxforge run ... | head``
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Run one verb with the rest of its command line and return the exit code."""
    app = _app("")
    app.command(name)(_VERBS[name])
    return run_app(app, arguments)


def run_app(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run ``app`` and return its exit code; failures go to stderr as one paragraph (``--debug`` raises them).

    With ``--json`` the failure goes to stdout too, as ``{"error": {"kind", "message", "exit_code"}}``.
    """
    try:
        app(args=list(arguments))
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read us has gone. Python would complain again while it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--debug" in arguments:
            raise
        return _report(error, as_json="--json" in arguments)
    return 0


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
    if as_json:
        content = {"kind": failure.kind, "message": failure.message, "exit_code": failure.exit_code}
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"error": content}))
    print(f"error: {failure.message}", file=sys.stderr)
    return failure.exit_code
