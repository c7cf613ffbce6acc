"""What a proof does on a machine that has the provider, as far as a machine without can tell."""

import dataclasses
import sys

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from onnxforge.compiler import proof_cuda_graph
from onnxforge.compiler.cuda_graph_report import CudaGraphReport, cuda_graph_section
from onnxforge.compiler.loop_check import reference, tie_on
from onnxforge.compiler.placement_seen import assignment, check_seen_placement, judge_assignment
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.speed import child_command, measure
from onnxforge.compiler.speed_types import SpeedReport, SpeedTest, Timing
from onnxforge.compiler.targets import CPU, CUDA
from onnxforge.runtimes.artifact import read_manifest, write_manifest
from onnxforge.runtimes.session import options_for


def report(*rates: float) -> SpeedReport:
    tests = (SpeedTest(generate=100), SpeedTest(generate=100, depth=512))
    return SpeedReport(
        1.0, 1, 1, tuple(Timing(test, (100 / rate,)) for test, rate in zip(tests, rates, strict=True))
    )


def test_recorded_steps_become_the_default_where_every_test_gains():
    found = CudaGraphReport(plain=report(100, 100), recorded=report(300, 150))
    assert found.ratio == pytest.approx(1.5)
    assert found.options == {"enable_cuda_graph": "1"}
    page = cuda_graph_section(found)
    assert "By default **on**" in page
    assert "| tg100 @ d512 |       100.0 |    150.0 | 1.50x |" in page
    slower = CudaGraphReport(plain=report(100, 100), recorded=report(300, 101))
    assert (slower.enabled, slower.options) == (False, {})
    assert "**off, since less than 1.03x**" in cuda_graph_section(slower)


def test_both_ways_are_timed_and_what_cannot_record_is_left_alone(make_artifact, monkeypatch):
    asked = {}

    def timed(folders, tests, *, rounds, seed, patience, cuda_graph):
        asked.update({name: child_command(folders[name], 1, seed, told) for name, told in cuda_graph.items()})
        return {"plain": report(50, 50), "recorded": report(100, 90)}

    monkeypatch.setattr(proof_cuda_graph, "measure", timed)

    @dataclasses.dataclass(frozen=True)
    class Found:
        cuda_graph: CudaGraphReport | None = None

    folder = make_artifact("a")
    options = ProofOptions("cuda-fp16", lambda name, into: None)
    assert proof_cuda_graph.cuda_graph(Found(), folder, options).cuda_graph is None
    on_gpu = dataclasses.replace(read_manifest(folder), provider=CUDA, shared_cache=True)
    write_manifest(folder, on_gpu)
    found = proof_cuda_graph.cuda_graph(Found(), folder, options).cuda_graph
    assert found.ratio == pytest.approx(1.8)
    assert [command[-1] for command in asked.values()] == ["0", "1"]


def test_the_timing_process_is_told(make_artifact):
    command = child_command(make_artifact("a"), 1, 0, cuda_graph=True)
    assert command[0] == sys.executable
    with pytest.raises(Exception, match="cuda_graph=True is not possible: it runs on CPUExecutionProvider"):
        measure({}, (SpeedTest(prompt=4),), rounds=1, threads=1, peers={"a": command})


def test_where_nodes_went_is_asked_of_onnx_runtime(make_artifact):
    folder = make_artifact("a")
    seen = check_seen_placement(folder, read_manifest(folder))
    assert (seen.held, seen.required) == (True, True)
    assert "nodes, as loaded on this machine" in seen.found


def test_a_hot_node_elsewhere_is_named():
    kinds = (TensorProto.FLOAT, ["n", 4, 8])
    x, y = helper.make_tensor_value_info("x", *kinds), helper.make_tensor_value_info("y", *kinds)
    m, n = (helper.make_tensor_value_info(name, TensorProto.INT64, [3]) for name in "mn")
    nodes = [
        helper.make_node("Softmax", ["x"], ["y"], name="scores"),
        helper.make_node("Neg", ["m"], ["n"], name="sizes"),
    ]
    graph = helper.make_graph(nodes, "g", [x, m], [y, n])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[CPU])
    assigned = assignment(session)
    assert assigned == {"scores": ("Softmax", CPU), "sizes": ("Neg", CPU)}
    typed = ir.from_proto(model)
    assert judge_assignment(typed, assigned, CPU).held
    off = judge_assignment(typed, {"scores": ("Softmax", CPU), "sizes": ("Neg", CUDA)}, CUDA)
    assert (off.held, off.found) == (False, f"Softmax scores on {CPU}")
    assert judge_assignment(typed, {"scores": ("Softmax", CUDA), "sizes": ("Neg", CPU)}, CUDA).held
    assert not judge_assignment(typed, {"sizes": ("Neg", CPU)}, CUDA).held  # nothing at all went there


class Logits:
    """A decoder whose steps choose between two tokens, ever more narrowly."""

    def __init__(self) -> None:
        self.gaps = [4.0, 2.0, 1.0, 0.05, 3.0]

    def new_state(self, **_: object) -> "Logits":
        return self

    def prompt(self, prompts: object) -> np.ndarray:
        return np.array([[0.0, 10 - self.gaps.pop(0), 10.0]])

    def step(self, tokens: object) -> np.ndarray:
        return self.prompt(tokens)[None]


def test_on_a_gpu_a_choice_too_near_to_call_ends_what_is_compared():
    assert tie_on(CPU) == 0
    assert reference(Logits(), (7,), 4) == [7, 2, 2, 2, 2]
    assert reference(Logits(), (7,), 4, tie_on(CUDA)) == [7, 2, 2, 2]


def test_a_sealed_artifact_that_records_is_loaded_without_in_a_proof(make_artifact):
    folder = make_artifact("a")
    manifest = dataclasses.replace(
        read_manifest(folder), provider=CUDA, provider_options={"enable_cuda_graph": "1", "device_id": "1"}
    )
    assert options_for(CUDA, manifest) == {"device_id": "1"}
    assert options_for(CPU, manifest) == {}
