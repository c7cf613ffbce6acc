"""The whole student learns its teacher's answers; interrupted, it goes on from its best."""

import pytest
from damaged_students import bytes_of, damaged, fused, loss_on, text, untimed

from onnxforge.compiler import distill_logits
from onnxforge.compiler.distill_logits import WHAT, DistillLogits
from onnxforge.compiler.step_progress import heard_by
from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.unpruned import remember_unpruned

QUICK = DistillLogits(minutes=0.05, learning_rate=1e-3)


@pytest.fixture(autouse=True)
def _counted(monkeypatch, tmp_path):
    untimed(monkeypatch, tmp_path)
    monkeypatch.setattr(distill_logits, "distillation_text", lambda *_, **__: text(ragged=True))


def loss(model, name):
    return loss_on(text(ragged=True).held_out[0], model, name)


@pytest.mark.parametrize(
    ("family", "task", "name"),
    [
        ("llama", None, "logits"),
        ("bert", None, "last_hidden_state"),
        ("bert", "text-classification", "logits"),
    ],
)
def test_a_damaged_model_comes_closer_to_its_teacher(tiny_export, family, task, name):
    model = damaged(fused(tiny_export(family, task)))
    before, weights = loss(model, name), bytes_of(model)
    with notes.listen() as said:
        assert QUICK(model).modified
    assert loss(model, name) < 0.9 * before
    changed = {key for key, data in bytes_of(model).items() if data != weights[key]}
    assert len(changed) > 10
    assert not [key for key in changed if "embeddings" in key and "Norm" not in key]
    (note,) = [note for note in said if note.what == WHAT]
    assert note.reason == "kept"
    assert note.value == pytest.approx(loss(model, name), rel=1e-3)


def test_an_untied_head_stays(tiny_export):
    model = damaged(fused(tiny_export("mistral")))
    weights = bytes_of(model)
    QUICK(model)
    changed = {key for key, data in bytes_of(model).items() if data != weights[key]}
    assert changed
    assert not [key for key in changed if "lm_head" in key or "embed" in key]


def test_an_interrupted_run_goes_on_from_its_best(tiny_export):
    seen = []

    def stop(detail):
        seen.append(detail)
        if len(seen) == 40:
            raise KeyboardInterrupt

    with heard_by(stop), pytest.raises(KeyboardInterrupt):
        QUICK(damaged(fused(tiny_export("llama"))))
    again, later = damaged(fused(tiny_export("llama"))), []
    with heard_by(later.append):
        assert QUICK(again).modified
    assert seen[0].startswith("0.0 of 0.05 min")
    starts = [next(detail for detail in said if "held-out" in detail) for said in (seen, later)]
    first, second = (float(detail.split("min, ")[1].split()[0]) for detail in starts)
    assert second < first
    third, heard = damaged(fused(tiny_export("llama"))), []
    with heard_by(heard.append):
        QUICK(third)
    assert not heard  # the minutes are over: nothing is trained again
    assert bytes_of(third) == bytes_of(again)


def test_a_model_that_answers_as_its_teacher_stays_as_it_is(tiny_export):
    model = fused(tiny_export("llama"))
    remember_unpruned(model)
    before = bytes_of(model)
    with notes.listen() as said:
        assert not QUICK(model).modified
    assert bytes_of(model) == before
    assert "no gain" in said[-1].reason


def test_refusals(tiny_export):
    model = fused(tiny_export("llama"))
    with pytest.raises(PassRefused, match="nothing was pruned"):
        QUICK.requires(model)
    damaged(model)
    for options in ({"minutes": 0}, {"samples": 1}, {"tokens": 1}, {"learning_rate": 0}, {"temperature": 0}):
        with pytest.raises(PassRefused, match=r"must be above|needs at least"):
            DistillLogits(**options).requires(model)
