"""Layer skip inside the loop: what the model guesses itself changes no token, and the loop takes it."""

import numpy as np
import onnx_ir as ir
import pytest
from loop_runs import CONTEXT, INT4, INT8, Loop, Plain, some_prompt

from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.base import PassRefused
from onnxforge.passes.residual_branches import residual_branches
from onnxforge.passes.skip_layers import mark_skipped

BLUNT = "3"
"""The branch that `blunt` has add nothing: the second layer's MLP."""


@pytest.fixture
def blunt(fused):
    """A model of which a branch can go without changing a token."""
    model = fused("llama")
    weight = model.graph.initializers["model.layers.1.mlp.down_proj.weight"]
    weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)
    return model


@pytest.mark.parametrize(
    ("family", "steps"),
    [("llama", ()), ("llama", (INT8,)), ("llama", (INT4,)), ("qwen3", ()), ("gpt2", ())],
    ids=str,
)
def test_no_token_changes(fused, family, steps):
    model = fused(family, *steps)
    plain, loop = Plain(model), Loop(model, "2+3+5")
    guessed = 0
    for seed, length in ((0, 1), (1, 2), (2, 9), (3, 30)):
        prompt = some_prompt(seed, length)
        wanted = plain.answer(prompt, 30)
        for drafts, skipping in ((0, 0), (6, 0), (0, 3), (6, 3), (6, 1), (2, 31)):
            found = loop.answer(prompt, 30, drafts=drafts, max_layer_skip_tokens=skipping)
            assert found[0] == wanted, (length, drafts, skipping)
            guessed += found[2] if not drafts else 0
    assert guessed > 50


def test_what_is_left_out_when_it_adds_nothing_is_guessed_right(blunt):
    loop = Loop(blunt, BLUNT)
    prompt = some_prompt(5, 7)
    wanted = Plain(blunt).answer(prompt, 40)
    answer, steps, drafted, accepted = loop.answer(prompt, 40, drafts=0, max_layer_skip_tokens=4)
    assert answer == wanted
    # the prompt's run gives one token, each step after four guesses five, and the last one after three four
    assert drafted == accepted == 7 * 4 + 3
    assert steps == 1 + 7 * 5 + 4


def test_an_answer_ends_where_it_would(blunt):
    loop, plain = Loop(blunt, BLUNT), Plain(blunt)
    prompt = some_prompt(5, 7)
    whole = plain.answer(prompt, 40)
    for eos in (whole[9], whole[12]):
        assert loop.answer(prompt, 40, eos=[eos], drafts=0, max_layer_skip_tokens=5)[0] == plain.answer(
            prompt, 40, [eos]
        )
    for room in (1, 2, 3, 6):
        full = some_prompt(room, CONTEXT - room)
        assert loop.answer(full, 40, drafts=0, max_layer_skip_tokens=8)[0] == plain.answer(full, 40)
    assert loop.answer(prompt, 0, drafts=0, max_layer_skip_tokens=8) == (prompt, 0, 0, 0)


def test_drawn_tokens_do_not_hang_on_guesses(blunt):
    loop = Loop(blunt, BLUNT)
    prompt = some_prompt(5, 7)
    for seed in range(4):
        drawing = {"temperature": 1.5, "seed": seed}
        plain = loop.answer(prompt, 30, drafts=0, **drawing)
        skipping = loop.answer(prompt, 30, drafts=0, max_layer_skip_tokens=3, **drawing)
        assert skipping[0] == plain[0]
        assert skipping[3] > 15, "guesses draw by the numbers of their places"


def test_nothing_is_guessed_unless_asked(blunt):
    found = Loop(blunt, BLUNT).answer(some_prompt(5, 7), 20, drafts=0)
    assert found[2:] == (0, 0)
    assert found == Loop(blunt).answer(some_prompt(5, 7), 20, drafts=0)


def test_marked_branches(blunt):
    mark_skipped(residual_branches(blunt.graph)[int(BLUNT)].join, "for a test")
    marked, told = (AddSpeculativeLoop(branches=text)(blunt).model for text in ("marked", BLUNT))
    assert ir.to_proto(marked).SerializeToString() == ir.to_proto(told).SerializeToString()


def test_branches_that_cannot_be_left_out(fused):
    with pytest.raises(PassRefused, match="numbers from 0 to 9"):
        AddSpeculativeLoop(branches="10").requires(fused("llama"))
