"""Helper modules beside these tests are importable by name."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from loop_runs import FUSED

from onnxforge.compiler import pipeline
from onnxforge.passes.base import GraphPass


@pytest.fixture(scope="session")
def fused(tiny_export: Callable[..., ir.Model]) -> Callable[..., ir.Model]:
    """``fused(family, *steps)``: a tiny model after the passes of ``cpu-fp32``, with ``steps`` before the
    last."""

    @cache
    def make(family: str, *steps: str) -> ir.Model:
        model = tiny_export(family)
        for step in pipeline.parse((*FUSED[:-1], *steps, FUSED[-1])):
            assert isinstance(step, GraphPass)
            step(model)
        return model

    return lambda *args: make(*args).clone()
