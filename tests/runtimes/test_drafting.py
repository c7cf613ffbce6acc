"""Which requests draft: what the artifact says, what the request asks for, what is possible."""

import pytest
from plain_decoding import NO_EOS, reference, same
from tiny_artifacts import PLAIN, SHARED, Form, seal, write_decoder

from onnxforge.runtimes import RequestError, Speculation, load

ENABLED = Speculation(enabled=True, max_draft_tokens=5, step_cost=(1.0, 1.1, 1.2))


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A decoder whose artifact drafts by default."""
    folder = write_decoder(tmp_path_factory.mktemp("default") / "a", SHARED)
    seal(folder, speculation=ENABLED)
    return load(folder, threads=1)


def test_the_artifact_says_whether_requests_draft(speaking, models):
    prompt = "the hand and the hand and"
    got = speaking.generate(prompt, max_new_tokens=60, **NO_EOS)
    assert 0 < got.stats.speculative.draft_tokens_proposed <= 5 * got.stats.speculative.rounds
    off = speaking.generate(prompt, max_new_tokens=60, max_draft_tokens=0, **NO_EOS)
    assert off.stats.speculative is None
    same(got, off)
    same(got, reference(models[SHARED], prompt, 60, **NO_EOS))
    assert models[SHARED].generate(prompt, max_new_tokens=5).stats.speculative is None


def test_one_row_a_step_is_plain_decoding_whatever_the_artifact_says(speaking, assistant):
    prompt = "the hand and the hand and"
    got = speaking.generate(prompt, max_new_tokens=60, min_rows=1, **NO_EOS)
    assert got.stats.speculative is None
    same(got, speaking.generate(prompt, max_new_tokens=60, min_rows=1, max_draft_tokens=0, **NO_EOS))
    with pytest.raises(RequestError, match="min_rows is 1 and the request drafts"):
        speaking.generate(prompt, min_rows=1, assistant_model=assistant)


def test_a_batch_does_not_draft_by_default_and_refuses_to_when_asked(speaking, assistant):
    assert [r.stats.speculative for r in speaking.generate(["a", "b"], max_new_tokens=5)] == [None, None]
    for options in ({"max_draft_tokens": 3}, {"assistant_model": assistant}, {"min_rows": 2}):
        with pytest.raises(RequestError, match="takes one prompt, and this batch has 2"):
            speaking.generate(["a", "b"], **options)


def test_a_graph_without_a_shared_cache_says_so(decoders_by_form, assistant):
    for options in ({"max_draft_tokens": 3}, {"assistant_model": assistant}, {"min_rows": 2}):
        with pytest.raises(RequestError, match="needs GroupQueryAttention"):
            decoders_by_form[PLAIN].generate("a", **options)
    assert decoders_by_form[PLAIN].generate("a", max_new_tokens=3, max_draft_tokens=0).token_ids
    with pytest.raises(RequestError, match="min_rows is 2"):
        decoders_by_form[PLAIN].new_state(min_rows=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_draft_tokens": -1}, "max_draft_tokens is -1; pass a whole number from 0 .* to 31"),
        ({"max_draft_tokens": 32}, "max_draft_tokens is 32"),
        ({"max_draft_tokens": 2.0}, "max_draft_tokens is 2.0"),
        ({"max_draft_tokens": True}, "max_draft_tokens is True"),
        ({"prompt_lookup_num_tokens": 99}, "prompt_lookup_num_tokens is 99"),
        ({"max_draft_tokens": 3, "prompt_lookup_num_tokens": 3}, "name the same number"),
        ({"min_rows": 3}, "min_rows is 3"),
        ({"min_rows": 1, "max_draft_tokens": 3}, "min_rows is 1 and the request drafts"),
        ({"assistant_model": "folder"}, "assistant_model is 'folder'; pass a Decoder"),
    ],
)
def test_options_out_of_range_are_refused(decoder, options, message):
    for call in (decoder.generate, decoder.stream):
        with pytest.raises(RequestError, match=message):
            call("the", **options)


def test_two_ways_to_draft_are_refused(decoder, assistant):
    with pytest.raises(RequestError, match="two ways to draft"):
        decoder.generate("a", prompt_lookup_num_tokens=3, assistant_model=assistant)


def test_more_drafts_than_the_context_are_refused(tmp_path):
    with load(write_decoder(tmp_path / "short", Form(context=12)), threads=1) as short:
        with pytest.raises(RequestError, match=r"from 0 .* to 11, the model having a context of 12"):
            short.generate([7], max_draft_tokens=12)
        assert short.generate([7], max_draft_tokens=11, max_new_tokens=11, **NO_EOS).token_ids
