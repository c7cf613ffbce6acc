"""Artifacts of the tests' tiny seeded families, for benchmarks that look at graphs and not at numbers."""

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from onnxforge.compiler.build import build, normalised
from onnxforge.compiler.target_file import find_target
from onnxforge.models import export_model
from onnxforge.models.tasks import task_for

TESTS = Path(__file__).parent.parent / "tests"


def tiny_artifacts(families: Sequence[str], targets: Sequence[str], folder: Path) -> Iterator[Path]:
    """``folder/tiny-FAMILY-TARGET`` for each pair, one after the other, unproven; no family means all."""
    sys.path.insert(0, str(TESTS))
    tiny = importlib.import_module("conftest")
    for family in families or tiny.TINY:
        source = tiny._make_source(tiny._make_torch(family, None, {}), family, {})
        exported = export_model(source)
        for target in targets:
            into = folder / f"tiny-{family}-{target}"
            into.mkdir()
            build(source, exported, normalised(find_target(target)), task_for(source), into, name=into.name)
            yield into
