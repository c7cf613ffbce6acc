"""The model drafts for itself, with layers left out: one session, one cache, and no token changes."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from tiny_artifacts import CONTEXT, SHARED, SHARED_POSITIONS, Form, seal, write_decoder

from onnxforge.passes.skip_layers import SkipLayers
from onnxforge.runtimes import (
    ArtifactError,
    CancelToken,
    Decoder,
    GenerationOptions,
    RequestError,
    Speculation,
    load,
)
from onnxforge.runtimes.layer_skip_drafter import LayerSkipDrafter
from onnxforge.runtimes.sampling import Sampler

NO_EOS = {"eos_token_id": []}
FORMS = (SHARED, SHARED_POSITIONS, Form(keeps_logits=False), Form(int8=True))
OWN = Speculation(True, 5, drafter="layer-skip", draft_graph=SkipLayers.file)
BESIDE = replace(OWN, drafter="ngram")
PROMPTS = ["the hand and the hand and", "a", [7], [7] * 30]


def write(folder, form=SHARED, speculation=OWN, branches="0", blunt=False):
    """An artifact that can leave its first layer out; `blunt`: which adds nothing, so that no guess is
    wrong."""
    write_decoder(folder, form)
    path = folder / "onnx" / "model.onnx"
    model = ir.load(path)
    if blunt:
        weight = model.graph.initializers["o0"]
        weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name="o0")
        ir.save(model, path)
    step = SkipLayers(branches=branches)
    step.requires(model)
    ir.save(step(model).model, folder / SkipLayers.file)
    seal(folder, speculation=speculation)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    base = tmp_path_factory.mktemp("skipping")
    return {form: load(write(base / str(i), form), threads=1) for i, form in enumerate(FORMS)}


def plain(model, prompt, count, **options):
    return model.generate(prompt, max_new_tokens=count, min_rows=2, max_draft_tokens=0, **options)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.3}], ids=str)
def test_no_greedy_token_changes(models, form, options):
    for prompt in PROMPTS:
        expected = plain(models[form], prompt, 60, **options)
        for count in (1, 4, 31):
            got = models[form].generate(prompt, max_new_tokens=60, max_draft_tokens=count, **options)
            assert got.token_ids == expected.token_ids
            assert got.stats.speculative.draft_forward_passes > 0


def test_the_graph_with_switches_is_the_plain_one_until_they_are_set(tmp_path, models):
    folder = write(tmp_path / "beside", speculation=BESIDE)
    with load(folder, threads=1) as other:
        assert not other.graph.skips_layers
        for prompt in PROMPTS:
            expected = plain(other, prompt, 40).token_ids
            assert plain(models[SHARED], prompt, 40).token_ids == expected


def test_layers_that_add_nothing_are_guessed_right(tmp_path):
    with load(write(tmp_path / "blunt", blunt=True), threads=1) as model:
        prompt = model.prompt_tokens("words")
        answer = plain(model, prompt, 9, **NO_EOS).token_ids
        state = model.new_state(min_rows=2)
        state.prompt([np.array(prompt)])
        drafter = LayerSkipDrafter(state, CONTEXT, model.vocabulary, Sampler(GenerationOptions(), ()), ())
        drafter.read([*prompt, answer[0]])
        draft = drafter.propose(8)
        assert (draft.tokens, drafter.forward_passes) == (answer[1:], 8)
        assert state.lengths.tolist() == [len(prompt)]
        assert drafter.propose(3).tokens == answer[1:4]


def test_a_guess_reads_what_the_whole_model_wrote(tmp_path):
    """A first guess is the choice of the layers that stay, over the cache of all of them."""
    with load(write(tmp_path / "m"), threads=1) as model:
        graph = model.graph
        state = model.new_state(min_rows=2)
        tokens = np.arange(5, 25)
        state.prompt([tokens])
        whole = state._memory.read([0], state.capacity)
        guessed = state.skim(30).copy()
        assert state.lengths.tolist() == [21]
        state.rewind(1)
        for before, after in zip(whole, state._memory.read([0], 20), strict=True):
            assert np.array_equal(after, before[:, :, :20])
        feeds = {tensor.past: array for tensor, array in zip(graph.cache, whole, strict=True)}
        feeds |= {"input_ids": np.array([[30]]), "attention_mask": np.ones((1, 21), np.int64)}
        feeds["skip_layers"] = np.array([1])
        expected = graph.session.run(["logits"], feeds)[0][0, -1]
        assert np.array_equal(guessed, expected)
        assert not np.array_equal(guessed, state.step(np.array([[30]]))[0, -1])


def test_the_context_may_end_inside_a_draft(models):
    prompt = [9] * (CONTEXT - 12)
    got = models[SHARED].generate(prompt, max_new_tokens=12, max_draft_tokens=31, **NO_EOS)
    assert got.token_ids == plain(models[SHARED], prompt, 12, **NO_EOS).token_ids
    assert len(prompt) + len(got.token_ids) == CONTEXT


def test_a_seed_repeats_itself(models):
    options = {"do_sample": True, "seed": 11, "temperature": 1.2, "max_new_tokens": 40, **NO_EOS}
    first, second = (models[SHARED].generate("the hand", **options) for _ in range(2))
    assert first.token_ids == second.token_ids
    assert first.stats.speculative.draft_forward_passes > 0


def test_other_ways_to_draft_go_first(models, tmp_path):
    lookup = models[SHARED].generate("the hand", max_new_tokens=30, prompt_lookup_num_tokens=4, **NO_EOS)
    assert lookup.stats.speculative.draft_forward_passes == 0
    assert models[SHARED].generate(["a", "b"], max_new_tokens=3)[1].stats.speculative is None


def test_cancelled_in_the_middle(models):
    token = CancelToken()
    stream = models[SHARED].stream("the", max_new_tokens=100, cancel=token, **NO_EOS)
    for _ in stream:
        token.cancel()
    assert stream.result.finish_reason == "cancelled"


def test_an_artifact_that_drafts_otherwise_by_default_can_be_asked_to(tmp_path):
    folder = write(tmp_path / "m", speculation=BESIDE)
    with load(folder, threads=1, draft="layer-skip") as model:
        assert isinstance(model, Decoder)
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes > 0
    with load(folder, threads=1) as model:
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes == 0


def test_asked_to_it_drafts_where_speculation_is_off(tmp_path):
    off = Speculation(False, 0, min_rows=1, draft_graph=SkipLayers.file)
    folder = write(tmp_path / "m", speculation=off)
    with load(folder, threads=1) as model:
        assert model.generate("the hand", max_new_tokens=9).stats.speculative is None
    with load(folder, threads=1, draft="layer-skip") as model:
        got = model.generate("the hand", max_new_tokens=30, **NO_EOS)
        assert got.stats.speculative.draft_forward_passes > 0
        assert got.token_ids == plain(model, "the hand", 30, **NO_EOS).token_ids


@pytest.mark.parametrize("draft", [None, "layer-skip"])
def test_a_graph_that_leaves_no_layer_out_is_refused(tmp_path, draft):
    folder = write(tmp_path / "m", speculation=replace(OWN, draft_graph="onnx/model.onnx"))
    with pytest.raises(ArtifactError, match=r"onnx/model.onnx: no input skip_layers"):
        load(folder, threads=1, draft=draft)


def test_an_artifact_without_says_how_to_get_it(tmp_path):
    with pytest.raises(RequestError, match="compile it again with `--draft layer-skip`"):
        load(write_sealed(tmp_path / "m"), draft="layer-skip")


def write_sealed(folder):
    write_decoder(folder)
    seal(folder)
    return folder
