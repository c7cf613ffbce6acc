"""The README is run: its commands and its Python, in order, in an empty folder."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from onnxforge.compiler import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^\$ ((?:compile|onnxforge) .*)$", re.MULTILINE)
_QUICKER = {
    "compile": ["--no-proof"],
    "run": ["--max-new-tokens", "4"],
    "bench": ["-p", "8", "-n", "4", "-r", "1"],
}


def blocks(language: str) -> list[str]:
    return [body for kind, body in _BLOCK.findall(README) if kind == language]


def commands() -> list[list[str]]:
    lines = [line for body in blocks("console") for line in _COMMAND.findall(body)]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A folder in which every command of the README was run; their exit codes."""
    folder = tmp_path_factory.mktemp("readme")
    text = "The compiler reads a model and writes a graph. " * 40
    (folder / "some.txt").write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        codes = {}
        for words in commands():
            verb, *rest = words[1:] if words[0] == "onnxforge" else words
            codes[" ".join(words)] = cli.run_verb(verb, [*rest, *_QUICKER.get(verb, [])])
    return folder, codes


def test_every_command_runs(followed):
    _, codes = followed
    assert len(codes) >= 6
    assert set(codes.values()) == {0}, codes


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.splitlines()[0])
def test_every_python_block_runs(followed, code, monkeypatch, capsys):
    folder, _ = followed
    if "onnxruntime_genai" in code and importlib.util.find_spec("onnxruntime_genai") is None:
        pytest.skip("onnxruntime-genai is not among the pinned dependencies; bench/interop.py runs it")
    monkeypatch.chdir(folder)
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    if "vectors" in found:
        assert found["vectors"].shape == (2, 384)
    if "logits" in found:
        assert found["logits"].shape[:2] == (1, 3)


def test_the_table_of_targets_is_complete():
    from onnxforge.compiler.targets import TARGETS

    assert all(f"| `{target.name}` |" in README for target in TARGETS)
