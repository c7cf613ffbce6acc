"""An artifact for a provider that this machine lacks: measured elsewhere, and never called verified."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.compiler.float16_range import _is_mask, check_float16_range
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.proof_types import ProofOptions
from onnxforge.compiler.provider_here import stand_in
from onnxforge.compiler.save import save_model
from onnxforge.compiler.structure_check import StructureCheck
from onnxforge.compiler.targets import CPU, CUDA, Bound, BudgetLine
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.convert_float16 import ConvertFloat16

SOURCE = Source("tiny", SourceKind.FOLDER, {"vocab_size": 200})
IDS = np.arange(2, 26, dtype=np.int64)[None, :]
pytestmark = pytest.mark.skipif(
    CUDA in ort.get_available_providers(), reason="this installation has the provider that is to be absent"
)


def for_cuda(folder: Path, scale: float = 1.0) -> Path:
    """The hand-made artifact as if compiled for CUDA: float16, its embeddings multiplied by ``scale``."""
    model = ir.load(folder / "onnx" / "model.onnx")
    for name, value in model.graph.initializers.items():
        factor = scale if name == "embed" else 1
        value.const_value = ir.tensor(value.const_value.numpy() * np.array(factor, value.dtype.numpy()))
    ConvertFloat16()(model)
    save_model(model, folder)
    manifest = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps({**manifest, "provider": CUDA}))
    return folder


def options(make_artifact, *budget: BudgetLine) -> ProofOptions:
    return ProofOptions(
        "cuda-fp16",
        lambda name, folder: make_artifact(name, into=folder),
        budget,
        windows=2,
        window=32,
        speed=True,
    )


def test_the_cpu_stands_in_for_what_is_not_here():
    assert (stand_in(CUDA), stand_in(CPU)) == (CPU, CPU)


def test_the_report_says_what_was_not_verified(make_artifact):
    staging = for_cuda(make_artifact("staging"))
    quality = BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.01)
    speed = BudgetLine("decode_speed_ratio", Bound.AT_LEAST, 1.5)
    proof = prove(staging, SOURCE, None, options(make_artifact, quality, speed), Ledger())
    assert proof.missed == ()
    assert (proof.summary["provider"], proof.summary["verified_on"]) == (CUDA, CPU)
    assert not any(key.endswith("_speed_ratio") for key in proof.summary), "no speed was measured"
    page = (staging / "report" / "index.md").read_text()
    assert f"**Not verified on {CUDA}**" in page
    assert f"The budget line decode_speed_ratio >= 1.5 is **not proven**: it needs {CUDA}." in page
    assert f"held on {CPU}" in page
    assert "## Structure" in page
    assert "activations stay inside float16" in page


def test_the_largest_activation_is_named(make_artifact):
    check = check_float16_range(GraphSession(for_cuda(make_artifact("a")), CPU), IDS)
    assert check is not None
    assert check.held
    assert "% of its range, at" in check.found


def test_an_activation_beyond_float16_is_a_broken_rule(make_artifact):
    check = check_float16_range(GraphSession(for_cuda(make_artifact("a"), scale=2e4), CPU), IDS)
    assert check is not None
    assert not check.held
    assert check.required
    assert check.found.startswith("largest inf")


def test_a_broken_rule_misses_the_budget(make_artifact, monkeypatch):
    broken = StructureCheck("activations stay inside float16", "largest inf", held=False, required=True)
    monkeypatch.setattr("onnxforge.compiler.proof_quality.check_float16_range", lambda *_: broken)
    proof = prove(for_cuda(make_artifact("a")), SOURCE, None, options(make_artifact), Ledger())
    assert proof.missed == ("promised that activations stay inside float16, found largest inf",)


def test_an_operator_that_cuda_lacks_misses_the_budget_by_name(make_artifact):
    folder = for_cuda(make_artifact("a"))
    path = folder / "onnx" / "model.onnx"
    model = ir.load(path)
    hidden = next(v for n in model.graph for v in n.outputs if v.shape is not None and len(v.shape) == 3)
    assert hidden.dtype is ir.DataType.FLOAT16
    readers = [(node, index) for node, index in hidden.uses()]
    wide = ir.node("Cast", [hidden], {"to": ir.DataType.FLOAT}, name="widen")
    planted = ir.node("Asinh", wide.outputs, name="planted")
    narrow = ir.node("Cast", planted.outputs, {"to": ir.DataType.FLOAT16}, name="narrow")
    for node, index in readers:
        node.replace_input_with(index, narrow.outputs[0])
    model.graph.insert_after(hidden.producer(), [wide, planted, narrow])
    for node in (wide, planted, narrow):
        node.outputs[0].name = node.name
    ir.save(model, path)
    proof = prove(folder, SOURCE, None, options(make_artifact), Ledger())
    (missed,) = [line for line in proof.missed if "stays on CUDA" in line]
    assert "Asinh planted in onnx/model.onnx main" in missed
    page = (folder / "report" / "index.md").read_text()
    assert "**off CUDA**: Asinh planted" in page
    assert "`widen` to the CPU" in page


def test_a_mask_is_no_overflow():
    assert _is_mask(np.array([0, -np.inf, -65504], np.float16))
    assert not _is_mask(np.array([0, np.inf], np.float16))


def test_a_graph_without_float16_has_no_range_to_leave(make_artifact):
    assert check_float16_range(GraphSession(make_artifact("plain")), IDS) is None
