"""A finished file holds what runs, under unique names, and nothing else."""

import numpy as np
import onnx_ir as ir
from small_graphs import apply, declined, graph, ops, random

from onnxforge.passes.cleanup import Cleanup


def tidy() -> ir.Model:
    return graph("g (float[b,8] x) => (float[b,8] y) { a = Relu(x)\n y = Mul(a, w) }", w=random(8))


def test_a_tidy_graph_is_left_alone():
    model = tidy()
    del model.opset_imports["com.microsoft"]
    declined(Cleanup(), model)


def test_what_nobody_reads_goes():
    model = graph(
        "g (float[b,8] x) => (float[b,8] y) { dead = Mul(x, w)\n y = Relu(x) }",
        w=random(8),
        spare=np.array([1]),
    )
    apply(Cleanup(), model)
    assert ops(model) == ["Relu"]
    assert not model.graph.initializers
    assert dict(model.opset_imports) == {"": 23}


def test_notes_of_the_exporter_go_and_our_metadata_stays():
    model = tidy()
    model.metadata_props["onnxforge.task"] = "fill-mask"
    model.graph.doc_string = "exported by"
    model.graph[0].metadata_props["stack"] = "File ..."
    model.graph[0].outputs[0].metadata_props["stack"] = "File ..."
    model.graph[1].doc_string = "File ..."
    apply(Cleanup(), model)
    assert model.metadata_props == {"onnxforge.task": "fill-mask"}
    assert not model.graph.doc_string
    assert not any(item.metadata_props or item.doc_string for item in model.graph)


def test_names_are_unique_and_given():
    model = tidy()
    model.graph[0].name = model.graph[1].name = "same"
    third = ir.node("Neg", [model.graph[1].outputs[0]])
    third.outputs[0].name = "z"
    model.graph.append(third)
    model.graph.outputs[0] = third.outputs[0]
    apply(Cleanup(), model)
    names = [item.name for item in model.graph]
    assert len(set(names)) == 3
    assert all(names)


def test_nodes_are_sorted():
    model = tidy()
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    apply(Cleanup(), model)
    assert ops(model) == ["Relu", "Mul"]


def test_the_ir_version_is_one_that_every_runtime_loads():
    model = tidy()
    model.ir_version = 13
    apply(Cleanup(), model)
    assert model.ir_version == 10
