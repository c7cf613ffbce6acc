"""The house rules that a tool can check: packages, sizes, names, and what may import what at run time."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("compiler", "models", "passes", "runtimes")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def modules() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_folder_with_code_is_a_listed_package():
    setuptools = project()["tool"]["setuptools"]
    folders = {str(path.parent.relative_to(ROOT)) for path in modules()}
    assert set(setuptools["package-dir"].values()) == folders
    assert set(setuptools["package-dir"]) == set(setuptools["packages"])


def test_top_level_is_the_one_the_project_promises():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    if not any(tracked):
        pytest.skip("not a git checkout")
    folders = {name.split("/")[0] for name in tracked if "/" in name and not name.startswith(".")}
    assert folders == {*PACKAGES, "tests", "bench", "docs", "examples"}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path: Path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES, "look for the second idea in this file"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines; a function fits on a screen"


def test_every_pass_has_one_phrase_in_four_spellings():
    """``passes/fuse_norm.py`` holds ``FuseNorm``, is registered as ``fuse-norm``, has a test file."""
    from onnxforge.passes.registry import NAMES, pass_class

    for name in NAMES:
        cls = pass_class(name)
        snake = name.replace("-", "_")
        assert cls.pass_name() == name
        assert cls.__module__ == f"onnxforge.passes.{snake}"
        assert (ROOT / "passes" / f"{snake}.py").is_file()
        assert (ROOT / "tests" / "passes" / f"test_{snake}.py").is_file(), f"{name} has no test file"


def test_every_pass_says_what_it_does():
    from onnxforge.passes.registry import NAMES, pass_class

    for name in NAMES:
        cls = pass_class(name)
        assert cls.summary, f"{name} has no summary"
        assert cls.__doc__, f"{name} has no docstring"


def test_nothing_names_a_vague_module():
    vague = re.compile(r"(utils?|helpers?|manager|misc|common)\.py$")
    assert not [path for path in modules() if vague.search(path.name)]


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("onnxforge.runtimes", ("torch", "transformers", "onnx", "onnx_ir", "onnxscript")),
        ("onnxforge.passes.registry", ("torch", "transformers", "onnxruntime")),
        ("onnxforge.compiler.cli", ("torch", "transformers")),
        ("onnxforge.models", ("torch", "transformers")),
    ],
)
def test_importing_stays_light(module: str, forbidden: tuple[str, ...]):
    """Asked of a fresh interpreter, because a lazy import two modules away is invisible to a linter."""
    code = f"import sys, {module}; print([m for m in {forbidden!r} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_both_commands_are_installed():
    names = {entry.name for entry in entry_points(group="console_scripts")}
    assert {"compile", "onnxforge"} <= names
