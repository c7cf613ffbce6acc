"""Layers learn what their teacher's do; an interrupted course goes on; nothing ends worse than it was."""

import os

import numpy as np
import pytest
import torch
from damaged_students import bytes_of, damaged, fused, loss_on, text, untimed

from onnxforge.compiler import (
    distill_blocks,
    distill_logits,
    distillation_cache,
    layer_distillation,
)
from onnxforge.compiler.activations import multiplied
from onnxforge.compiler.distill_blocks import WHAT, DistillBlocks
from onnxforge.compiler.distill_logits import DistillLogits
from onnxforge.compiler.distillation_losses import logits_loss, stream_error
from onnxforge.compiler.layer_distillation import layer_pairs
from onnxforge.compiler.step_progress import heard_by
from onnxforge.compiler.trainable_weights import trainable_weights
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.input_gradients import InputGradients, gradients_of, leave_gradients
from onnxforge.passes.layers import find_layers
from onnxforge.passes.prune_heads import PruneHeads
from onnxforge.passes.prune_layers import PruneLayers
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.unpruned import remember_unpruned, unpruned

QUICK = DistillBlocks(minutes=0.2, learning_rate=2e-3)


@pytest.fixture(autouse=True)
def _counted(monkeypatch, tmp_path):
    untimed(monkeypatch, tmp_path)
    monkeypatch.setattr(distill_blocks, "distillation_text", lambda *_, **__: text())


def loss(model, name):
    return loss_on(text().held_out[0], model, name)


@pytest.mark.parametrize(("family", "name"), [("llama", "logits"), ("bert", "last_hidden_state")])
def test_a_damaged_model_comes_closer_to_its_teacher(tiny_export, family, name):
    model = damaged(fused(tiny_export(family)))
    before, weights = loss(model, name), bytes_of(model)
    inside = next(value for value in multiplied(model.graph) if value.producer() is not None)
    leave_gradients(inside, InputGradients(np.ones(64, np.float32), 1))
    teacher = bytes_of(unpruned(model))
    heard = []
    with notes.listen() as said, heard_by(heard.append):
        assert QUICK(model).modified
    assert loss(model, name) < 0.8 * before
    assert bytes_of(unpruned(model)) == teacher
    changed = {key for key, data in bytes_of(model).items() if data != weights[key]}
    assert changed
    assert not [key for key in changed if "embed" in key or "rotary" in key or "shape" in key]
    *layers, whole = [note for note in said if note.what == WHAT]
    assert len(layers) == len(layer_pairs(model.graph, unpruned(model).graph))
    assert whole.reason == "kept"
    assert gradients_of(inside) is None  # they were those of other weights
    assert whole.value == pytest.approx(loss(model, name), rel=1e-3)
    assert heard[0].startswith("layer 1 of ")


def test_a_model_without_two_layers_learns_the_stream_behind_them(tiny_export):
    model = fused(tiny_export("llama"))
    PruneLayers(layers="1+2")(model)
    before = loss(model, "logits")
    pairs = layer_pairs(model.graph, unpruned(model).graph)
    whole = [layer.whole.end for layer in find_layers(unpruned(model).graph)]
    assert [pair.end[1] for pair in pairs] == [whole[2], whole[3], whole[4]], (
        "the first does three layers' work"
    )
    assert pairs[1].start == pairs[0].end
    assert QUICK(model).modified
    assert loss(model, "logits") < before


@pytest.mark.parametrize("step", [QUICK, DistillLogits(minutes=0.05, learning_rate=1e-3)], ids=str)
def test_a_model_with_fewer_heads_channels_and_layers_learns(tiny_export, monkeypatch, step):
    monkeypatch.setattr(distill_logits, "distillation_text", lambda *_, **__: text())
    model = fused(tiny_export("llama"))
    PruneLayers(layers="3")(model)
    PruneHeads(share=0.5, unit="group", score="magnitude", refit=False)(model)
    PruneMlp(share=0.25, score="magnitude", refit=False, multiple=4)(model)
    before = loss(model, "logits")
    assert step(model).modified
    assert loss(model, "logits") < 0.97 * before
    past = next(value for value in model.graph.inputs if value.name == "past_key_values.3.key")
    assert past.shape[1] == 1


def test_a_model_that_answers_as_its_teacher_stays_as_it_is(tiny_export):
    model = fused(tiny_export("llama"))
    remember_unpruned(model)
    before = bytes_of(model)
    with notes.listen() as said:
        assert not QUICK(model).modified
    assert bytes_of(model) == before
    assert "no gain" in said[-1].reason


def test_an_interrupted_course_goes_on_behind_the_last_layer(tiny_export, monkeypatch):
    counted = []
    learn = layer_distillation.learn_layer
    monkeypatch.setattr(distill_blocks, "learn_layer", lambda *a, **k: counted.append(1) or learn(*a, **k))

    def stop(detail):
        if detail.startswith("layer 4"):
            raise KeyboardInterrupt

    model = damaged(fused(tiny_export("llama")))
    with heard_by(stop), pytest.raises(KeyboardInterrupt):
        QUICK(model)
    assert len(counted) == 3
    again = damaged(fused(tiny_export("llama")))
    before = loss(again, "logits")
    assert QUICK(again).modified
    assert len(counted) == 5
    assert loss(again, "logits") < 0.85 * before
    third = damaged(fused(tiny_export("llama")))  # finished: equal inputs give the same bytes at once
    QUICK(third)
    assert len(counted) == 5
    assert bytes_of(third) == bytes_of(again)
    other = damaged(fused(tiny_export("llama")))
    DistillBlocks(minutes=0.1, learning_rate=1e-3)(other)
    assert len(counted) == 10


def test_a_damaged_checkpoint_is_learned_anew(tiny_export, tmp_path):
    QUICK(damaged(fused(tiny_export("llama"))))
    (path,) = tmp_path.glob("onnxforge/distillation/*/layer1.npz")
    path.write_bytes(path.read_bytes()[:-200])
    model = damaged(fused(tiny_export("llama")))
    with notes.listen() as said:
        assert QUICK(model).modified
    (note,) = [note for note in said if note.what == distillation_cache.WHAT]
    assert str(path) == note.where
    assert "anew" in note.reason


def test_a_short_time_takes_less_text(tiny_export, monkeypatch):
    passed = []
    run = layer_distillation.Side.run
    monkeypatch.setattr(
        layer_distillation.Side, "run", lambda self, *a: passed.append(id(a[3])) or run(self, *a)
    )
    DistillBlocks(minutes=0.01, learning_rate=2e-3)(damaged(fused(tiny_export("llama"))))
    assert len(set(passed)) == 2  # one to learn from, one that is held out


def test_old_checkpoints_go(tiny_export, tmp_path):
    root = tmp_path / "onnxforge" / "distillation"
    for age in range(6):
        (root / f"run{age}").mkdir(parents=True)
        os.utime(root / f"run{age}", (1e9 if age == 0 else 2e9 + age,) * 2)
    distillation_cache._forget(root)
    assert sorted(path.name for path in root.iterdir()) == ["run2", "run3", "run4", "run5"]


def test_a_full_disk_costs_the_checkpoint_and_not_the_run(tiny_export, tmp_path):
    (tmp_path / "onnxforge").write_text("a file where the folder would be")
    with notes.listen() as said:
        assert QUICK(damaged(fused(tiny_export("llama")))).modified
    reasons = [note.reason for note in said if note.what == distillation_cache.WHAT]
    assert any("cannot be written" in reason for reason in reasons)


def test_what_learns(tiny_export):
    model = fused(tiny_export("llama"))
    names = {value.name for value in trainable_weights(list(model.graph))}
    assert {"model.norm.weight", "model.layers.0.mlp.down_proj.weight"} <= names
    assert not [name for name in names if "embed" in name]  # the head is the same table
    assert len(names) == 5 * 7 + 1  # two norms, qkv, o, gate, up, down of five layers, and the last norm
    (first, *_) = layer_pairs(model.graph, model.graph)
    assert all("layers.0." in value.name for value in trainable_weights(first.nodes))


def test_losses_are_zero_for_equals_and_look_at_real_tokens_only():
    torch.manual_seed(0)
    one, other, real = torch.randn(2, 3, 5), torch.randn(2, 3, 5), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()
    for distance in (stream_error, logits_loss):
        assert float(distance(one, one, real)) == pytest.approx(0, abs=1e-6)
        far = torch.where(real[..., None], other, other + 7)
        assert float(distance(one, far, real)) == pytest.approx(float(distance(one, other, real)))
    p, q = torch.softmax(other[real], -1), torch.log_softmax(one[real], -1)
    want = (p * (p.log() - q)).sum(-1).mean()
    assert float(logits_loss(one, other, real)) == pytest.approx(float(want), rel=1e-5)


def test_refusals(tiny_export):
    model = fused(tiny_export("llama"))
    with pytest.raises(PassRefused, match="nothing was pruned"):
        QUICK.requires(model)
    damaged(model)
    for options in ({"minutes": 0}, {"samples": 1}, {"tokens": 1}, {"learning_rate": 0}):
        with pytest.raises(PassRefused, match=r"must be above|needs at least"):
            DistillBlocks(**options).requires(model)
    for node in unpruned(model).graph:
        for value in node.outputs:
            value.name = f"other.{value.name}"
    with pytest.raises(Exception, match="no value '/model/layers"):
        QUICK(model)


def test_the_last_matrices_alone_are_solved_for(tiny_export, monkeypatch, tmp_path):
    """As the refit behind removed layers: no training, so equal models give equal bytes without a cache."""
    made, heard = [], []
    for name in ("one", "two"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        model = fused(tiny_export("llama"))
        PruneLayers(layers="2")(model)
        before, weights = loss(model, "logits"), bytes_of(model)
        with heard_by(heard.append):
            assert DistillBlocks(train=False)(model).modified
        assert loss(model, "logits") < before
        changed = {key for key, data in bytes_of(model).items() if data != weights[key]}
        assert changed
        assert all("down_proj" in key for key in changed)
        made.append(bytes_of(model))
    assert made[0] == made[1]
    assert heard == [f"layer {number} of 4" for number in (1, 2, 3, 4)] * 2
