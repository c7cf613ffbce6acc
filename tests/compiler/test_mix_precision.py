"""What is sensitive is found by measuring, and kept out of static W8A8: no more than the limit asks for."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibrate import Calibrate
from onnxforge.compiler.calibration_data import attach, calibration_batches
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.mix_precision import MixPrecision
from onnxforge.compiler.save import GRAPH, save_model
from onnxforge.compiler.sensitivity import switch_session
from onnxforge.compiler.switched_graph import SWITCH, products, switched_graph
from onnxforge.compiler.targets import TARGETS
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.insert_qdq import InsertQdq
from onnxforge.passes.kept_float import kept_float

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32").passes
FUSED = FP32[: FP32.index("add-speculative-loop")]
TRIAL = InsertQdq(min_sqnr_db=0, min_elements=1, skip="lm_head|embed")


@pytest.fixture
def calibrated(tiny_export, tiny_source):
    """A tiny fused model with ranges, with or without one channel that drowns a layer's other ones."""

    def make(family: str, outlier: float = 1.0) -> ir.Model:
        model = tiny_export(family)
        if outlier != 1.0:
            gamma = model.graph.initializers["model.layers.2.post_attention_layernorm.weight"]
            array = gamma.const_value.numpy().copy()
            array[7] *= outlier
            gamma.const_value = ir.tensor(array, name=gamma.name)
            for part in ("gate", "up"):
                weight = model.graph.initializers[f"model.layers.2.mlp.{part}_proj.weight"]
                matrix = weight.const_value.numpy().copy()
                matrix[:, 7] /= outlier
                weight.const_value = ir.tensor(matrix, name=weight.name)
        for graph_pass in pipeline.parse(FUSED):
            graph_pass(model)
        attach(model, tiny_source(family))
        Calibrate(samples=2, tokens=32)(model)
        return model

    return make


def answers(model, folder, feeds_of, extra=None):
    save_model(model, folder)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / GRAPH), options)
    specs = [spec for spec in session.get_inputs() if spec.name != SWITCH]
    return session.run(None, dict(whole_sequence_feeds(specs, *feeds_of, "test")) | (extra or {}))[0]


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_row_of_the_switched_graph_is_the_model_in_that_form(calibrated, tmp_path, family):
    model = calibrated(family)
    both = switched_graph(model, TRIAL)
    sites = len(both.positions)
    assert sites >= 16
    (batch, *_) = calibration_batches(model, 1, 24)
    ids, mask = batch.ids[:1, :24], batch.mask[:1, :24]
    switch = np.zeros((sites, 2, 1, 1), dtype=bool)
    switch[:, 1] = True
    rows = answers(
        both.model, tmp_path / "both", (np.tile(ids, (2, 1)), np.tile(mask, (2, 1))), {SWITCH: switch}
    )
    plain = answers(model, tmp_path / "plain", (ids, mask))
    TRIAL(model)
    static = answers(model, tmp_path / "static", (ids, mask))
    assert np.abs(static - plain).max() > 1e-3  # else the forms could not be told apart
    np.testing.assert_allclose(rows[0], plain[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rows[1], static[0], rtol=1e-4, atol=1e-5)


def test_the_model_is_not_touched(calibrated):
    model = calibrated("llama")
    before = [(node.op_type, tuple(node.inputs)) for node in model.graph]
    switched_graph(model, TRIAL)
    assert [(node.op_type, tuple(node.inputs)) for node in model.graph] == before
    assert not any(kept_float(node) for node in model.graph)


def test_no_choice_is_no_divergence_and_many_at_once_are_as_one_by_one(calibrated):
    model = calibrated("llama")
    both = switched_graph(model, TRIAL)
    sites = len(both.positions)
    work = list(calibration_batches(model, 2, 16))
    choices = np.eye(sites, dtype=bool)[:5]
    with switch_session(both.model) as session:
        assert session.divergence(np.zeros((1, sites), dtype=bool), work)[0] == 0
        together = session.divergence(choices, work)
        apart = [session.divergence(choice[None], work)[0] for choice in choices]
    assert (together > 0).all()
    np.testing.assert_allclose(together, apart, rtol=1e-3)


def mixed(model, **options):
    step = MixPrecision(
        samples=1, tokens=24, check_samples=1, check_tokens=24, skip="lm_head|embed", **options
    )
    with notes.listen() as seen:
        step(model)
    return seen, [node for node in products(model) if kept_float(node)]


def test_an_outlier_channel_is_found_and_kept_back_first(calibrated, monkeypatch):
    monkeypatch.setattr("onnxforge.compiler.mix_precision.InsertQdq.min_elements", 1)
    model = calibrated("llama", outlier=3000.0)
    seen, _ = mixed(model, max_kl=1e-12)
    worst = sorted(seen, key=lambda note: -note.value)[:2]
    assert {note.where.split("layers.")[1] for note in worst} == {
        "2/mlp/gate_proj/MatMul",
        "2/mlp/up_proj/MatMul",
    }
    limit = sum(note.value for note in seen) - 0.9 * sum(note.value for note in worst)
    seen, kept = mixed(model, max_kl=limit)
    assert 1 <= len(kept) <= 2
    assert all("layers.2/mlp" in node.name for node in kept)
    outcomes = [note.reason for note in seen]
    assert outcomes.count("kept back") == len(kept)


def test_insert_qdq_leaves_what_is_marked_and_says_why(calibrated):
    model = calibrated("llama")
    _, kept = mixed(model, max_kl=1e-12)
    assert kept
    with notes.listen() as seen:
        TRIAL(model)
    misses = {note.where: note.reason for note in seen if note.kind is notes.NoteKind.NEAR_MISS}
    assert all("static W8A8 here alone moves the answers by" in misses[node.name] for node in kept)


def test_a_wide_limit_keeps_nothing_back_and_takes_old_marks_away(calibrated):
    model = calibrated("llama")
    assert mixed(model, max_kl=1e-12)[1]
    assert mixed(model, max_kl=1e3)[1] == []


def test_encoders_are_judged_by_cosine(calibrated):
    model = calibrated("bert")
    _, none = mixed(model, max_cosine_distance=1.0)
    _, every = mixed(model, max_cosine_distance=1e-15)
    assert none == []
    assert len(every) >= 16


@pytest.mark.parametrize("options", [{"max_kl": 0}, {"samples": 0}, {"check_tokens": 1}])
def test_limits_that_mean_nothing_are_refused(options):
    with pytest.raises(PassRefused, match="mix-precision"):
        MixPrecision(**options).requires(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10))
