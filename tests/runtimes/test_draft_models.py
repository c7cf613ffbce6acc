"""Models that draft: another folder, a graph of the artifact itself, and those that do not fit."""

import json

import numpy as np
import pytest
from fake_models import TableState, Whole, speculate
from plain_decoding import NO_EOS, reference, same
from tiny_artifacts import SHARED, VOCABULARY, Form, seal, write_decoder, write_encoder

from onnxforge.runtimes import Decoder, GenerationOptions, RequestError, drafting, load


def test_a_draft_folder_drafts_for_every_request_and_is_closed_with_its_target(tmp_path):
    target, draft = write_decoder(tmp_path / "target"), write_decoder(tmp_path / "draft", seed=1)
    with load(target, threads=1, draft=draft) as model:
        assert isinstance(model, Decoder)
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes > 0
        same(got, reference(model, "the hand", 30, **NO_EOS))
        lookup = model.generate("the hand", max_new_tokens=30, prompt_lookup_num_tokens=4, **NO_EOS)
        assert lookup.stats.speculative.draft_forward_passes == 0
        assert model.generate(["a", "b"], max_new_tokens=3)[1].stats.speculative is None
        drafting_graph = model._draft
    with pytest.raises(RequestError, match="closed"):
        _ = drafting_graph.graph


def test_a_draft_with_another_vocabulary_is_refused_with_the_difference(tmp_path, models):
    folder = write_decoder(tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["Ġthe"], tokenizer["model"]["vocab"]["the"] = (
        tokenizer["model"]["vocab"]["the"],
        tokenizer["model"]["vocab"]["Ġthe"],
    )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(folder)
    message = r"cannot draft for .*: 2 tokens differ .* such as 'the': id \d+ and id \d+"
    with load(folder, threads=1) as other, pytest.raises(RequestError, match=message):
        models[SHARED].generate("the", assistant_model=other)
    with pytest.raises(RequestError, match=message):
        load(models[SHARED].folder, threads=1, draft=folder)


def test_encoders_neither_draft_nor_are_drafted_for(tmp_path):
    encoder, decoder = write_encoder(tmp_path / "encoder"), write_decoder(tmp_path / "decoder")
    with pytest.raises(RequestError, match="nothing can be drafted for it"):
        load(encoder, draft=decoder)
    with pytest.raises(RequestError, match=r"is an encoder .* cannot draft tokens"):
        load(decoder, draft=encoder)


def test_a_draft_model_of_a_smaller_context_drafts_while_it_can(models, tmp_path):
    with load(write_decoder(tmp_path / "short", Form(context=24)), threads=1) as short:
        expected = reference(models[SHARED], "the hand", 60, **NO_EOS)
        got = models[SHARED].generate("the hand", max_new_tokens=60, assistant_model=short, **NO_EOS)
        same(got, expected)
        assert 0 < got.stats.speculative.draft_forward_passes < 30


def test_a_long_match_goes_before_the_draft_model():
    table = np.full((1, 9, 9), -5.0, np.float32)
    table[0, np.arange(9), (np.arange(9) + 1) % 9] = 5.0
    passes = []
    for count in (20, 120):
        fill = drafting.ModelDrafter(TableState(table), 999, 9, drafting.Sampler(GenerationOptions(), ()), ())
        loop, answer = speculate(
            TableState(table),
            [0],
            GenerationOptions(),
            fill,
            count,
            length=Whole(4),
            free=drafting.NgramDrafter(),
        )
        for _ in loop.steps():
            pass
        assert answer.tokens == [(1 + i) % 9 for i in range(count)]
        passes.append(fill.forward_passes)
    assert passes[0] == passes[1] <= 12, "only while the circle was new"


def test_a_small_logits_row_of_the_draft_is_enough(models):
    """Padded vocabularies: ids that only one of the two models has a row for are never proposed."""
    state = TableState(np.zeros((1, 9, 9), np.float32))
    state.table[..., 8] = 4.0
    fill = drafting.ModelDrafter(state, 100, 5, drafting.Sampler(GenerationOptions(), ()), ())
    fill.read([1, 2])
    assert max(fill.propose(4).tokens) < 5


@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_a_target_with_more_rows_than_its_draft_model_says_ids_that_this_cannot_read(
    tmp_path, assistant, options
):
    with load(write_decoder(tmp_path / "padded", Form(padding=64)), threads=1) as padded:
        for prompt in ("the hand", [7, VOCABULARY + 3, 7]):
            expected = reference(padded, prompt, 60, **options, **NO_EOS)
            assert max(expected.token_ids) >= VOCABULARY
            got = padded.generate(prompt, max_new_tokens=60, assistant_model=assistant, **options, **NO_EOS)
            same(got, expected)
        drawn = {"do_sample": True, "seed": 3, "assistant_model": assistant, **options, **NO_EOS}
        assert len(padded.generate("the hand", max_new_tokens=60, **drawn).token_ids) == 60


def test_a_draft_model_with_more_rows_than_its_target_proposes_none_of_them(tmp_path, models):
    with load(write_decoder(tmp_path / "padded", Form(padding=64), seed=1), threads=1) as padded:
        expected = reference(models[SHARED], "the hand", 60, **NO_EOS)
        got = models[SHARED].generate("the hand", max_new_tokens=60, assistant_model=padded, **NO_EOS)
        same(got, expected)
        assert got.stats.speculative.draft_forward_passes > 0
