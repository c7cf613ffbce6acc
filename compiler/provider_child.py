"""Whether a provider works, asked in a process of its own: a broken CUDA library may end the process.

Run as ``python -m onnxforge.compiler.provider_child PROVIDER``; the last line on stdout is JSON,
``{"reason": ""}`` where a session computes.
"""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

_SECONDS = 180
"""The first session of a machine may take half a minute: CUDA and TensorRT load several hundred MB."""


def why_not_in_a_child(provider: str, command: Sequence[str] = ()) -> str:
    """Why no session computes on ``provider``; empty where one does. ``command`` replaces the child's."""
    program = command or (sys.executable, "-m", __name__, provider)
    try:
        child = subprocess.run(program, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"It did not start within {_SECONDS} seconds."
    except OSError as error:
        return f"No process could be started to try it: {error}."
    if child.returncode < 0:
        return f"The process that tried it was ended by {_signal(-child.returncode)}."
    try:
        reason = str(json.loads(child.stdout.splitlines()[-1])["reason"])
    except (IndexError, KeyError, TypeError, ValueError):
        last = (child.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return f"The process that tried it ended with code {child.returncode}: {last}."
    missing = re.search(r"with error: ([^\n]+)", child.stderr)
    return missing[1] if reason and missing else reason


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


if __name__ == "__main__":
    from onnxforge.compiler.provider_here import why_not

    print("\n" + json.dumps({"reason": why_not(sys.argv[1])}), flush=True)
