"""`skip-layers`: the plain numbers while the switch is off, and the branches really left out when it is
on."""

import numpy as np
import onnx_ir as ir
import pytest
from loop_runs import CONTEXT, INT8, session

from onnxforge.compiler import pipeline
from onnxforge.passes.base import PassRefused
from onnxforge.passes.residual_branches import residual_branches
from onnxforge.passes.skip_layers import SKIP, SkipLayers, mark_skipped

FAMILIES = {
    "llama": 2,
    "qwen2": 2,
    "qwen3": 2,
    "gemma2": 2,
    "gemma3_text": 2,
    "gpt2": 2,
    "phi": 1,
    "gpt_neox": 1,
    "stablelm": 2,
}
"""Branches of a layer: those that compute attention and MLP side by side have one."""


class Stepper:
    """Runs a graph over a cache of its own, as the runtime does."""

    def __init__(self, model: ir.Model) -> None:
        self._session = session(model)
        self._inputs = {item.name for item in self._session.get_inputs()}
        self.cache = {
            v.name: np.zeros((1, v.shape[1], CONTEXT, v.shape[3]), np.float32)
            for v in self._session.get_inputs()
            if v.name.startswith("past")
        }

    def run(self, before: int, tokens: list[int], skip: list[int] | None = None) -> np.ndarray:
        feeds = {"input_ids": [tokens], "attention_mask": np.ones((1, before + len(tokens)))}
        feeds["position_ids"] = [range(before, before + len(tokens))]
        feeds = {name: np.array(feeds[name], np.int64) for name in feeds if name in self._inputs}
        if skip is not None:
            feeds[SKIP] = np.array(skip, np.int64)
        logits, *present = self._session.run(None, feeds | self.cache)
        self.cache.update(zip(self.cache, present, strict=True))
        return logits[0]


def skipping(model: ir.Model, branches: str = "all", separately: bool = False) -> ir.Model:
    step = SkipLayers(branches=branches, separately=separately)
    step.requires(model)
    return step(model).model


RUNS = [*((family, ()) for family in FAMILIES), ("llama", (INT8,)), ("gpt2", (INT8,))]


@pytest.mark.parametrize(("family", "steps"), RUNS, ids=str)
def test_switched_off_nothing_changes_and_a_draft_leaves_no_trace(fused, family, steps):
    model = fused(family, *steps)
    count = len(residual_branches(model.graph))
    plain, other = Stepper(model), Stepper(skipping(model))
    tokens = np.random.default_rng(3).integers(3, 97, 30).tolist()
    assert np.array_equal(plain.run(0, tokens[:20]), other.run(0, tokens[:20]))
    for place in range(20, 24):
        drafted = other.run(place, tokens[place : place + 1], [1])
    assert count == FAMILIES[family] * model_layers(model)
    whole = plain.run(20, tokens[20:24])
    assert np.array_equal(whole, other.run(20, tokens[20:24]))
    assert not np.array_equal(whole[-1], drafted[-1])
    assert np.array_equal(plain.run(24, tokens[24:]), other.run(24, tokens[24:], [0]))


def model_layers(model: ir.Model) -> int:
    return sum((value.name or "").endswith(".key") for value in model.graph.inputs)


def test_each_switch_leaves_out_its_own_branch(fused):
    model = fused("llama")
    joins = [branch.join.name for branch in residual_branches(model.graph)]
    chosen = (1, 2, 7)
    other = Stepper(skipping(model, "7+2+1", separately=True))
    tokens = list(range(5, 25))
    for place, branch in enumerate(chosen):
        alone = Stepper(without(model, joins[branch]))
        skip = [int(i == place) for i in range(len(chosen))]
        assert np.allclose(other.run(0, tokens, skip), alone.run(0, tokens), atol=1e-5)


def without(model: ir.Model, join: str) -> ir.Model:
    """The model whose residual Add of this name passes its stream on."""
    model = model.clone()
    branch = next(b for b in residual_branches(model.graph) if b.join.name == join)
    branch.join.outputs[0].replace_all_uses_with(branch.stream)
    return model


def test_marks_say_what_to_leave_out(fused):
    model = fused("llama")
    with pytest.raises(PassRefused, match="no branch is marked"):
        SkipLayers().requires(model)
    mark_skipped(residual_branches(model.graph)[3].join, "for a test")
    marked, told = SkipLayers()(model).model, skipping(model, "3")
    assert ir.to_proto(marked).SerializeToString() == ir.to_proto(told).SerializeToString()


def test_no_weight_is_copied(fused):
    """Nothing is copied: the derived graph's weights are the model's own tensors."""
    model = fused("llama")
    own = {id(value.const_value) for value in model.graph.initializers.values()}
    derived = skipping(model).graph.initializers.values()
    new = [value.const_value for value in derived if id(value.const_value) not in own]
    assert sum(tensor.nbytes for tensor in new) < 200


@pytest.mark.parametrize(
    ("branches", "message"),
    [("10", "numbers from 0 to 9 joined by"), ("1+x", "numbers from 0 to 9"), ("-1", "numbers from 0 to 9")],
)
def test_branches_that_are_not_there(fused, branches, message):
    with pytest.raises(PassRefused, match=message):
        skipping(fused("llama"), branches)


def test_what_cannot_be_left_out_is_named(fused, tiny_export):
    standard = tiny_export("llama")
    for step in pipeline.parse(("canonicalize", "fuse-norm", "cleanup")):
        step(standard)
    with pytest.raises(PassRefused, match="branch 0 cannot be left out"):
        skipping(standard, "0")
    with pytest.raises(PassRefused, match="no Add was found"):
        skipping(fused("cohere"), "0")
