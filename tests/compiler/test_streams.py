"""Standard streams that are closed, full, or that nobody reads: a sensible code, at most one paragraph."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
SCRIPT = Path(sys.executable).with_name("onnxforge")


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """``line`` in bash; its exit code is that of the first failing part of a pipe."""
    command = ["bash", "-o", "pipefail", "-c", line.replace("onnxforge", str(SCRIPT), 1)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "redirection", [">&-", "2>&-", "<&-", "<&- >&- 2>&-", pytest.param("2>/dev/full", marks=FULL)]
)
@pytest.mark.parametrize("verb", ["targets --json", "targets"])
def test_streams_that_are_not_needed_are_not_missed(verb: str, redirection: str):
    done = shell(f"onnxforge {verb} {redirection}")
    assert (done.returncode, done.stderr) == (0, "")
    assert ("cpu-int8" in done.stdout) == (">&-" not in redirection.replace("2>&-", ""))


def test_a_refusal_keeps_its_code_when_stderr_is_closed():
    assert shell("onnxforge run nothing 2>&-").returncode == 2


@FULL
@pytest.mark.parametrize("arguments", ["targets", "targets --json", "targets --debug"])
def test_a_full_stdout_is_one_paragraph(arguments: str):
    done = shell(f"onnxforge {arguments} >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: Cannot write the result to stdout: No space left on device")
    assert done.stderr.count("\n") == 1


@FULL
def test_of_two_failures_the_first_is_told():
    done = shell("onnxforge run nothing --json >/dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing/artifact.json")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", ["targets --json", "run nothing --json"])
def test_a_reader_that_leaves_is_no_failure(arguments: str):
    done = shell(f"(sleep 1; onnxforge {arguments}) | true")
    assert done.returncode == (0 if arguments.startswith("targets") else 2)
    assert "stdout" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["PYTHONUNBUFFERED=1", "PYTHONUNBUFFERED="])
def test_unbuffered_output_says_the_same(setting: str):
    assert "cpu-int8" in shell(f"{setting} onnxforge targets | cat").stdout
    if os.path.exists("/dev/full"):
        done = shell(f"{setting} onnxforge targets > /dev/full")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize(("sent", "told"), [("INT", (130, "interrupted")), ("TERM", (143, "terminated"))])
def test_every_verb_ends_on_a_signal_with_one_line(sent: str, told: tuple[int, str]):
    code = """
import time
from onnxforge.compiler import cli

def wait() -> None:
    print("ready", flush=True)
    time.sleep(60)

cli._VERBS = {"wait": wait, "other": wait}
cli.main()
"""
    command = [sys.executable, "-c", code, "wait"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(getattr(signal, f"SIG{sent}"))
    _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (told[0], f"{told[1]}\n")
