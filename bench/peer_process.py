"""What every timed process of a peer tells its parent; runs in the peers' venv, so nothing of onnxforge."""

import json


def peak_rss() -> int:
    """Bytes: the high-water mark of this process's memory."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def answer(message: dict) -> None:
    """One line of JSON to the parent."""
    print(json.dumps(message), flush=True)
