"""``optimum-cli export onnxforge``, asked of optimum's own command line in a fresh process."""

import subprocess
import sys
from pathlib import Path

import pytest


def optimum(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_optimum_lists_it(tmp_path: Path):
    listed = optimum("--help", cwd=tmp_path)
    assert listed.returncode == 0
    assert "onnxforge" in listed.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--model", "x", "--target", "cpu-in8", "--calibration", "self", "out"), "did you mean `cpu-int8`"),
        (("--model", "nowhere/at/all", "--target", "cpu-int8", "--no-proof", "out"), "nowhere/at/all"),
    ],
)
def test_it_is_the_compile_command(tmp_path: Path, arguments: tuple[str, ...], says: str):
    refused = optimum("onnxforge", *arguments, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert says in refused.stderr
    assert not (tmp_path / "out").exists()
