"""The rows of watched values are the ones the whole graph computes, for what only they need."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from onnxforge.compiler import pipeline
from onnxforge.compiler.activations import multiplied, watched_rows
from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.graph_feeds import whole_sequence_feeds
from onnxforge.compiler.save import save_model
from onnxforge.compiler.targets import TARGETS

FP32 = next(target for target in TARGETS if target.name == "cpu-fp32").passes
FUSED = FP32[: FP32.index("add-speculative-loop")]


def batches(*lengths):
    """One batch per tuple of row lengths, padded on the right."""
    rng = np.random.default_rng(3)
    for rows in lengths:
        mask = (np.arange(max(rows))[None] < np.array(rows)[:, None]).astype(np.int64)
        yield CalibrationBatch(rng.integers(3, 97, mask.shape) * mask, mask)


def fused(model):
    for graph_pass in pipeline.parse(FUSED):
        graph_pass(model)
    return model


def whole(model, names, folder, batch):
    """The values of the whole graph, ONNX Runtime's own optimizations off, flat over B and S."""
    copy = model.clone()
    made = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.extend(made[name] for name in names if made[name] not in copy.graph.outputs)
    save_model(copy, folder)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(folder / "onnx/model.onnx"), options)
    feeds = whole_sequence_feeds(session.get_inputs(), batch.ids, batch.mask, "test")
    real = batch.mask.ravel().astype(bool)
    return [value.reshape(-1, value.shape[-1])[real] for value in session.run(names, dict(feeds))]


@pytest.mark.parametrize(("family", "rows"), [("llama", (9,)), ("bert", (7, 4, 1))])
def test_every_multiplied_value_is_what_the_whole_graph_computes(tiny_export, tmp_path, family, rows):
    model = fused(tiny_export(family))
    watched = multiplied(model.graph)
    assert len(watched) >= 16  # four layers of attention in, attention out, mlp in, mlp out
    (batch,) = batches(rows)
    (found,) = watched_rows(model, watched, [batch])
    expected = whole(model, [value.name for value in watched], tmp_path, batch)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == np.float32
        assert ours.shape == (sum(rows), theirs.shape[-1])
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_values_come_in_the_order_asked_for_however_often(tiny_export):
    model = fused(tiny_export("llama"))
    first, second, *_ = multiplied(model.graph)
    (found,) = watched_rows(model, [second, first, second], batches((5,)))
    ((alone,),) = watched_rows(model, [first], batches((5,)))
    np.testing.assert_array_equal(found[1], alone)
    np.testing.assert_array_equal(found[0], found[2])


def test_only_what_is_needed_is_written_and_run(tiny_export, monkeypatch):
    model = fused(tiny_export("llama"))
    text = ir.to_onnx_text(model)
    saved = []
    monkeypatch.setattr(
        "onnxforge.compiler.activations.save_model",
        lambda copy, folder: (saved.append(copy), save_model(copy, folder))[1],
    )
    early = multiplied(model.graph)[0]
    next(watched_rows(model, [early], batches((5,))))
    assert saved[0].graph.num_nodes() <= 3  # Gather, norm
    assert [value.name for value in saved[0].graph.outputs] == [early.name]
    assert not any("layers.1." in name for name in saved[0].graph.initializers)
    assert ir.to_onnx_text(model) == text


def test_batches_are_taken_one_at_a_time(tiny_export):
    model = fused(tiny_export("llama"))
    taken = []

    def endless():
        while True:
            (batch,) = batches((6,))
            taken.append(batch)
            yield batch

    rows = watched_rows(model, multiplied(model.graph)[:2], endless())
    next(rows), next(rows)
    assert len(taken) == 2
    rows.close()


def test_a_value_of_another_graph_is_an_error(tiny_export):
    stranger = ir.Value(name="stranger")
    with pytest.raises(ValueError, match="'stranger'"):
        next(watched_rows(fused(tiny_export("llama")), [stranger], batches((5,))))
