"""The scores are what the loss does when a channel shrinks; an encoder's, how far its answer moves."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxforge.compiler import measure_gradients, pipeline
from onnxforge.compiler.activations import multiplied
from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.measure_gradients import MeasureGradients
from onnxforge.compiler.pruning_losses import next_token_loss, own_label_loss, pooled
from onnxforge.compiler.targets import TARGETS
from onnxforge.compiler.torch_feeds import torch_feeds
from onnxforge.compiler.torch_graph import TorchGraph
from onnxforge.passes.base import PassRefused
from onnxforge.passes.constants import add_array
from onnxforge.passes.input_gradients import gradients_of

FUSE = next(t for t in TARGETS if t.name == "cpu-fp32").passes[:-2]


def batches(count=2):
    rng = np.random.default_rng(3)
    mask = np.ones((2, 9), dtype=np.int64)
    mask[1, 6:] = 0
    return [CalibrationBatch(rng.integers(3, 97, mask.shape) * mask, mask) for _ in range(count)]


@pytest.fixture
def fused(tiny_export, monkeypatch):
    """``fused(family)``: a fused graph whose calibration text is two seeded batches."""
    monkeypatch.setattr(measure_gradients, "calibration_batches", lambda *_, **__: batches())

    def make(family, task=None):
        model = tiny_export(family, task)
        for graph_pass in pipeline.parse(FUSE):
            graph_pass(model)
        return model

    return make


def down_inputs(model):
    return [value for value in multiplied(model.graph) if value.shape is not None and value.shape[-1] == 80]


def answers(model, factors=None, of=None):
    """The first output for each batch, with the channels of the value ``of`` multiplied by ``factors``."""
    copy = model.clone()
    if of is not None:
        value = next(v for node in copy.graph for v in node.outputs if v.name == of.name)
        scale = add_array(copy.graph, "factors", factors.astype(np.float32))
        scaled = ir.node("Mul", [value, scale])
        copy.graph.insert_after(value.producer(), scaled)
        for use in list(value.uses()):
            if use.node is not scaled:
                use.node.replace_input_with(use.idx, scaled.outputs[0])
    graph = TorchGraph(copy.graph, [copy.graph.outputs[0]])
    with torch.no_grad():
        return [graph(torch_feeds(copy.graph, batch))[0] for batch in batches()]


def losses(model, factors=None, of=None):
    said = answers(model, factors, of)
    found = [
        next_token_loss(logits.double(), torch.from_numpy(b.ids), torch.from_numpy(b.mask))
        for logits, b in zip(said, batches(), strict=True)
    ]
    return torch.cat(found).numpy()


def test_scores_are_what_the_loss_does_when_a_channel_shrinks(fused):
    model = fused("llama")
    assert not MeasureGradients()(model).modified
    assert all(gradients_of(value) is not None for value in multiplied(model.graph))
    value, step = down_inputs(model)[2], 0.02
    found = gradients_of(value)
    assert found.samples == 4
    assert found.importance.shape == (80,)
    for channel in np.argsort(-found.importance)[:3]:
        less, more = np.ones(80), np.ones(80)
        less[channel], more[channel] = 1 - step, 1 + step
        slopes = (losses(model, more, value) - losses(model, less, value)) / (2 * step)
        assert found.importance[channel] == pytest.approx(np.abs(slopes).mean(), rel=0.02)


def test_a_channel_that_nobody_reads_scores_nothing(fused):
    model = fused("llama")
    value = down_inputs(model)[1]
    weight = next(iter(value.uses())).node.inputs[1]
    matrix = np.array(weight.const_value.numpy())
    matrix[7] = 0
    weight.const_value = ir.tensor(matrix)
    MeasureGradients()(model)
    importance = gradients_of(value).importance
    assert importance[7] == 0
    assert np.sum(importance == 0) == 1


def test_an_encoders_scores_rank_channels_by_how_far_they_move_the_sentence(fused):
    model = fused("bert")
    MeasureGradients(directions=24)(model)
    value = down_inputs(model)[-1]
    found, whole = gradients_of(value), answers(model)
    moved = np.zeros(80)
    for channel in range(80):
        factors = np.ones(80)
        factors[channel] = 0
        for b, mine, theirs in zip(batches(), answers(model, factors, value), whole, strict=True):
            mask = torch.from_numpy(b.mask)
            moved[channel] += float((pooled(mine, mask) - pooled(theirs, mask)).norm(dim=-1).sum())
    ranks = [np.argsort(np.argsort(scores)) for scores in (found.importance, moved)]
    assert np.corrcoef(*ranks)[0, 1] > 0.8


def test_a_classifier_is_scored_by_labels_that_it_draws(fused):
    model = fused("bert", "text-classification")
    MeasureGradients()(model)
    assert all((gradients_of(value).importance > 0).any() for value in down_inputs(model))
    again = fused("bert", "text-classification")
    MeasureGradients()(again)
    for one, other in zip(multiplied(model.graph), multiplied(again.graph), strict=True):
        np.testing.assert_array_equal(gradients_of(one).importance, gradients_of(other).importance)


def test_padding_changes_no_loss():
    logits = torch.randn(1, 5, 11)
    ids, mask = torch.randint(0, 11, (1, 5)), torch.tensor([[1, 1, 1, 0, 0]])
    whole = next_token_loss(logits[:, :3], ids[:, :3], mask[:, :3])
    assert torch.equal(next_token_loss(logits, ids, mask), whole)
    drawn = [own_label_loss(logits[:, :n], mask[:, :n], torch.Generator().manual_seed(1)) for n in (3, 5)]
    assert torch.allclose(drawn[0], drawn[1])


def test_a_graph_that_overflows_is_refused(fused):
    model = fused("llama")
    value = down_inputs(model)[0]
    weight = next(iter(value.uses())).node.inputs[1]
    weight.const_value = ir.tensor(np.full(weight.const_value.shape.numpy(), np.inf, np.float32))
    with pytest.raises(Exception, match="NaN or infinite") as caught:
        MeasureGradients()(model)
    assert isinstance(caught.value.__cause__ or caught.value, PassRefused)


@pytest.mark.parametrize("options", [{"samples": 0}, {"tokens": 1}, {"directions": 0}])
def test_options_that_measure_nothing_are_refused(fused, options):
    with pytest.raises(PassRefused, match="needs at least"):
        MeasureGradients(**options).requires(fused("llama"))


def test_a_graph_with_other_answers_is_refused(fused):
    model = fused("bert")
    model.graph.outputs[0].name = "score"
    with pytest.raises(PassRefused, match="answers score, and neither logits nor last_hidden_state"):
        MeasureGradients().requires(model)
