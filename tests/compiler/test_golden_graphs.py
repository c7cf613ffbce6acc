"""Golden graphs: what each target makes of each demo model, node by node. A refactor shows as a diff.

``UPDATE_GOLDEN=1 pytest tests/compiler/test_golden_graphs.py`` writes them anew; read the diff before you
commit it.
"""

import os
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.graph_facts import graph_kind
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.source import Source
from onnxforge.passes.base import GraphPass

GOLDEN = Path(__file__).parent / "golden"


@cache
def source(name: str) -> Source:
    return open_model(name)


@cache
def exported(name: str) -> ir.Model:
    return export_model(source(name))


def steps(target: Target) -> tuple[str, ...]:
    """The target's passes without what is measured: calibration is short, and the choices of precision and
    of scales, which may differ from processor to processor, are left out."""
    named = [(text.split("{")[0], text) for text in target.passes]
    short = [
        (name, "calibrate{samples=1,tokens=32}" if name == "calibrate" else text) for name, text in named
    ]
    short = [
        (name, text.replace("correlate-inputs{", "correlate-inputs{samples=1,tokens=32,"))
        for name, text in short
    ]
    return tuple(text for name, text in short if name not in ("mix-precision", "search-scales"))


def written(model: ir.Model) -> str:
    """One line for every input, weight, node and output. Weights by dtype and shape, without bytes."""
    lines = [f"in   {value.name} {typed(value)}" for value in model.graph.inputs]
    lines += [f"data {name} {typed(value)}" for name, value in sorted(model.graph.initializers.items())]
    for node in model.graph:
        attributes = ", ".join(f"{a.name}={spelled(a)}" for a in node.attributes.values())
        reads = ", ".join(value.name or "" if value is not None else "-" for value in node.inputs)
        makes = ", ".join(value.name or "" for value in node.outputs)
        domain = f"{node.domain}." if node.domain else ""
        lines.append(f"node {makes} = {domain}{node.op_type}({reads}) {{{attributes}}}")
    lines += [f"out  {value.name} {typed(value)}" for value in model.graph.outputs]
    return "\n".join(lines) + "\n"


def typed(value: ir.Value) -> str:
    dims = ",".join(str(dim) for dim in value.shape) if value.shape is not None else "?"
    return f"{value.dtype}[{dims}]"


def spelled(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.FLOAT:
        return f"{attribute.value:.6g}"
    return str(attribute.value)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("model", ["smollm2-135m", "minilm-l6"])
def test_golden_graph(model: str, target):
    graph = exported(model).clone()
    if graph_kind(graph) in target.refuses:
        pytest.skip(f"{target.name} compiles no {graph_kind(graph)}")
    attach(graph, source(model))
    for step in pipeline.parse(steps(target)):
        if isinstance(step, GraphPass):
            step(graph)
    path = GOLDEN / f"{model}.{target.name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(written(graph), encoding="utf-8")
    assert written(graph) == path.read_text(encoding="utf-8")
