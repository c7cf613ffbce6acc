"""The peers' own virtual environments, built from PyPI with pinned versions.

Each peer pins its own transformers and onnxruntime, so none of them shares one. An environment that is there
and was built from the same requirements is used again.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

REQUIREMENTS: Mapping[str, tuple[str, ...]] = {
    "genai": (
        "onnxruntime-genai==0.18.0",
        "onnxruntime==1.31.1",
        "onnx==1.23.2",
        "onnx-ir==1.1.0",
        "torch==2.13.0",  # with transformers, for its model builder only
        "transformers==5.23.0",
    ),
    "llama": ("llama-cpp-python==0.3.36",),  # compiles for this machine's CPU: minutes, and a C++ compiler
    "openvino": (
        "openvino==2026.4.1",
        "openvino-genai==2026.4.1.0",
        "openvino-tokenizers==2026.4.1.0",
    ),
    # Converts decoders for OpenVINO; converts and runs encoders for both.
    "optimum": (
        "optimum-onnx==0.1.0",
        "optimum-intel==1.27.0",
        "openvino==2026.4.1",
        "openvino-tokenizers==2026.4.1.0",
        "nncf==3.4.0",
        "onnxruntime==1.31.1",
        "onnx==1.23.2",
        "torch==2.13.0",
        "transformers==4.57.6",
    ),
}
_STAMP = "requirements.txt"


@dataclass(frozen=True)
class Environments:
    """Where the environments are. ``pythons`` names interpreters of environments that somebody else made."""

    folder: Path
    pythons: Mapping[str, str] = field(default_factory=dict)

    def python(self, name: str) -> str:
        """The interpreter of environment ``name``, which is built first where it is missing or outdated."""
        if name in self.pythons:
            return self.pythons[name]
        home, wanted = self.folder / name, "\n".join(REQUIREMENTS[name]) + "\n"
        stamp, python = home / _STAMP, home / "bin" / "python"
        if not stamp.is_file() or stamp.read_text() != wanted:
            print(f"building the environment {home}", file=sys.stderr, flush=True)
            run_or_stop([sys.executable, "-m", "venv", "--clear", home], f"venv {name}")
            run_or_stop(
                [python, "-m", "pip", "install", "-q", *REQUIREMENTS[name]], f"pip install for {name}"
            )
            stamp.write_text(wanted)
        return str(python)


def pythons_from(pairs: list[str]) -> dict[str, str]:
    """``NAME=PYTHON`` of the command line.

    Raises:
        SystemExit: there is no such environment, or no such file.
    """
    found = {}
    for pair in pairs:
        name, _, python = pair.partition("=")
        if name not in REQUIREMENTS or not Path(python).is_file():
            raise SystemExit(
                f"--python {pair}: want NAME=/path/to/python with NAME in {', '.join(REQUIREMENTS)}"
            )
        found[name] = python
    return found


def run_or_stop(command: list, what: str, folder: Path | None = None) -> None:
    """Run ``command``; a failure ends this program with the end of what it said."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{what} failed ({done.returncode}): {(done.stderr or done.stdout)[-2000:]}")
