"""`add-speculative-loop`: one run from prompt to answer, token for token what plain decoding says."""

import threading
import time
from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loop_runs import CONTEXT, FUSED, INT4, INT8, VOCAB, Loop, Plain, session, some_prompt

from onnxforge.compiler import pipeline
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.base import DerivingPass, PassRefused
from onnxforge.passes.cache_range import annotate_cache

FOR_CUDA = ("separate-bias", "fuse-skip-norm", "fuse-quantized-gather", "convert-float16")
FAMILIES = ("llama", "qwen2", "gemma2", "gemma3_text", "gpt2")


@pytest.fixture(scope="session")
def pair(fused: Callable[..., ir.Model]) -> Callable[..., tuple[Plain, Loop]]:
    @cache
    def make(family: str, *steps: str) -> tuple[Plain, Loop]:
        model = fused(family, *steps)
        return Plain(model), Loop(model)

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_says_what_plain_decoding_says(pair, family: str):
    plain, loop = pair(family)
    for seed, length in ((0, 1), (1, 2), (2, 9), (3, 30)):
        prompt = some_prompt(seed, length, alphabet=9)
        wanted = plain.answer(prompt, 30)
        for drafts in (0, 1, 6):
            assert loop.answer(prompt, 30, drafts=drafts)[0] == wanted, (length, drafts)


@pytest.mark.parametrize("steps", [(INT8,), (INT4,)], ids=["int8", "int4"])
@given(seed=st.integers(0, 999), length=st.integers(1, 40), new=st.integers(0, 30), drafts=st.integers(0, 12))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_quantized_tokens_are_those_of_plain_decoding(pair, steps, seed, length, new, drafts):
    plain, loop = pair("llama", *steps)
    prompt = some_prompt(seed, length, alphabet=9)
    wanted = plain.answer(prompt, new)
    eos = wanted[len(prompt) + new // 2 :][:1]
    assert loop.answer(prompt, new, drafts=drafts)[0] == wanted
    assert loop.answer(prompt, new, eos, drafts)[0] == plain.answer(prompt, new, eos)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("steps", [(), (INT8.replace("level=4", "level=0"),)], ids=["fp16", "int8"])
def test_half_precision_as_the_cpu_computes_it(pair, family: str, steps: tuple[str, ...]):
    """The graphs of the CUDA targets, of which nothing is claimed here but that both read them alike."""
    plain, loop = pair(family, *steps, *FOR_CUDA)
    for seed, length in ((0, 1), (2, 9), (3, 30)):
        prompt = some_prompt(seed, length, alphabet=9)
        wanted = plain.answer(prompt, 30)
        for drafts in (0, 6):
            assert loop.answer(prompt, 30, drafts=drafts)[0] == wanted, (length, drafts)
    drawing = {"temperature": 0.9, "top_k": 5, "top_p": 0.9, "seed": 3}
    prompt = some_prompt(9, 12, alphabet=9)
    drawn = loop.answer(prompt, 30, drafts=0, **drawing)[0]
    assert loop.answer(prompt, 30, drafts=6, **drawing)[0] == drawn
    assert drawn != plain.answer(prompt, 30)


def test_an_int8_cache_is_carried_as_it_is(pair, fused):
    model = fused("llama")
    for node in model.graph:
        if node.op_type == "GroupQueryAttention":
            for present in node.outputs[1:3]:
                _, heads, _, size = present.shape
                annotate_cache(present, np.full((heads, size), 4.0, np.float32))
    pipeline.parse_pass("quantize-cache")(model)
    plain, loop = Plain(model), Loop(model)
    prompt = some_prompt(4, 12, alphabet=9)
    assert loop.answer(prompt, 30)[0] == plain.answer(prompt, 30)


def test_counts_add_up_and_drafts_are_accepted(pair):
    _, loop = pair("llama")
    prompt = some_prompt(1, 8, alphabet=9)
    tokens, steps, drafted, accepted = loop.answer(prompt, 40, drafts=6)
    assert accepted > 0
    assert accepted <= drafted
    assert len(tokens) - len(prompt) == steps + accepted
    assert loop.answer(prompt, 40, drafts=0)[1:] == (40, 0, 0)


def test_the_answer_ends_with_the_first_of_several_ends(pair):
    plain, loop = pair("llama")
    prompt = some_prompt(5, 10)
    whole = plain.answer(prompt, 30)
    first, later = whole[len(prompt)], whole[len(prompt) + 7]
    assert loop.answer(prompt, 30, [first])[0] == [*prompt, first]
    for eos in ([later], [later, 96], [96, later], []):
        assert loop.answer(prompt, 30, eos)[0] == plain.answer(prompt, 30, eos)


def test_an_end_inside_an_accepted_draft_cuts_it(pair):
    plain, loop = pair("llama")
    for seed in range(40):
        prompt = some_prompt(seed, 8, alphabet=9)
        free, _, _, accepted = loop.answer(prompt, 40)
        if accepted < 10:
            continue
        for end in set(free[len(prompt) :]):
            tokens, _, drafted, accepted = loop.answer(prompt, 40, [end])
            assert tokens == plain.answer(prompt, 40, [end])
            assert accepted <= min(drafted, len(tokens) - len(prompt))
        return
    pytest.fail("no prompt made the model repeat itself")


@pytest.mark.parametrize("drafts", [0, 5, 1000])
def test_limits(pair, drafts: int):
    plain, loop = pair("llama")
    prompt = some_prompt(6, 20, alphabet=9)
    for new in (0, 1, 2, 10_000, 2**63 - 1):
        assert loop.answer(prompt, new, drafts=drafts)[0] == plain.answer(prompt, new)
    assert loop.answer(prompt, -3, drafts=drafts) == (prompt, 0, 0, 0)


def test_a_prompt_that_fills_the_context_comes_back(pair):
    plain, loop = pair("llama")
    for length in (CONTEXT - 2, CONTEXT - 1):
        prompt = some_prompt(7, length)
        assert loop.answer(prompt, 9)[0] == plain.answer(prompt, 9)
    for length in (CONTEXT, CONTEXT + 1):
        prompt = some_prompt(7, length)
        assert loop.answer(prompt, 9) == (prompt, 0, 0, 0)


def test_an_empty_prompt_comes_back(pair):
    _, loop = pair("llama")
    for new in (0, 1, 9, 2**63 - 1):
        assert loop.answer([], new) == ([], 0, 0, 0)


def test_long_prompts_are_read_in_parts(fused, monkeypatch: pytest.MonkeyPatch):
    import onnxforge.passes.add_speculative_loop as module

    monkeypatch.setattr(module, "_CHUNK", 8)
    model = fused("llama")
    plain, loop = Plain(model), Loop(model)
    for length in (8, 9, 16, 17, 18, 33):
        prompt = some_prompt(length, length, alphabet=9)
        tokens, steps, _, accepted = loop.answer(prompt, 12)
        assert tokens == plain.answer(prompt, 12)
        assert steps + accepted == 12 + -(-length // 8) - 1


def test_every_run_reads_an_even_number_of_rows(fused):
    """A probe in the body counts the rows of all runs that are odd."""
    derived = AddSpeculativeLoop()(fused("llama")).model
    (loop,) = [node for node in derived.graph if node.op_type == "Loop"]
    body = loop.attributes["body"].as_graph()
    rows = next(value for node in body for value in node.outputs if value.name == "loop/draft/input_ids")
    shape = ir.node("Shape", [rows], {"start": 1, "end": 2})
    body.append(shape)
    body.outputs.append(shape.outputs[0])
    scanned = ir.Value(name="rows", type=ir.TensorType(ir.DataType.INT64))
    wider = ir.Node(
        "",
        "Loop",
        list(loop.inputs),
        list(loop.attributes.values()),
        outputs=None,
        num_outputs=len(loop.outputs) + 1,
    )
    for old, new in zip(loop.outputs, wider.outputs, strict=False):
        new.name = f"{old.name}/wider"
        old.replace_all_uses_with(new)
    wider.outputs[-1].name = scanned.name
    wider.outputs[-1].type = scanned.type
    derived.graph.insert_before(loop, wider)
    derived.graph.remove(loop, safe=True)
    derived.graph.outputs.append(wider.outputs[-1])
    run = session(derived)
    for length in (1, 2, 5, 8, 9):
        for drafts in (0, 1, 2, 5, 8):
            feeds = {
                "input_ids": [some_prompt(1, length, alphabet=9)],
                "eos_token_id": [],
                "max_new_tokens": 40,
            }
            feeds = {name: np.array(value, np.int64) for name, value in feeds.items()}
            read = run.run(["rows"], feeds | {"max_draft_tokens": np.array(drafts)})[0]
            assert len(read) > 1
            assert not (read % 2).any(), read.ravel()


def test_the_finished_model_is_left_alone_and_shares_its_weights(fused):
    model = fused("llama")
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = AddSpeculativeLoop()(model)
    assert result.modified
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    own = {id(v.const_value) for v in model.graph.initializers.values()}
    large = [v for v in result.model.graph.initializers.values() if v.const_value.nbytes > 1024]
    assert {id(v.const_value) for v in large} <= own
    assert all(not g.initializers for g in result.model.graphs() if g is not result.model.graph)


def test_two_derivations_are_equal(fused):
    model = fused("gemma2")
    once, twice = (AddSpeculativeLoop()(model).model for _ in range(2))
    assert ir.to_onnx_text(once) == ir.to_onnx_text(twice)


def test_without_limited_logits_the_last_rows_are_taken(tiny_export):
    model = tiny_export("llama")
    for step in pipeline.parse(text for text in FUSED if text != "limit-logits"):
        step(model)
    prompt = some_prompt(3, 7, alphabet=9)
    assert Loop(model).answer(prompt, 20)[0] == Plain(model).answer(prompt, 20)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.5, 12, 1.0), (1.0, 0, 0.8)])
def test_draws_have_the_distribution_of_the_logits(pair, temperature: float, top_k: int, top_p: float):
    """Chi-square over 1,500 seeds; the bound lets one honest run in a million fail."""
    plain, loop = pair("llama")
    prompt = some_prompt(8, 6)
    logits = plain.first_logits(prompt).astype(np.float64)
    order = np.argsort(-logits)[: top_k or VOCAB]
    share = np.exp((logits[order] - logits.max()) / temperature)
    share /= share.sum()
    kept = np.cumsum(share) - share < top_p
    order, share = order[kept], share[kept] / share[kept].sum()
    draws = 1500
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    said = [loop.answer(prompt, 1, seed=seed * 7919, **drawing)[0][-1] for seed in range(draws)]
    assert set(said) <= set(order.tolist())
    common = share * draws >= 5
    expected = np.append(share[common], share[~common].sum()) * draws
    found = np.array([said.count(token) for token in order[common]])
    found = np.append(found, draws - found.sum())
    filled = expected > 0
    statistic = float(((found[filled] - expected[filled]) ** 2 / expected[filled]).sum())
    freedom = int(filled.sum()) - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 12


def test_draws_do_not_depend_on_drafts(pair):
    _, loop = pair("llama")
    answers = set()
    for seed in (*range(8), -1, 2**62):
        prompt = some_prompt(9, 12, alphabet=9)
        drawing = {"temperature": 0.9, "top_k": 5, "seed": seed}
        plain = loop.answer(prompt, 40, drafts=0, **drawing)[0]
        assert loop.answer(prompt, 40, drafts=6, **drawing)[0] == plain
        answers.add(tuple(plain))
    assert len(answers) == 10


def test_a_tiny_temperature_takes_the_likeliest(pair):
    plain, loop = pair("llama")
    prompt = some_prompt(10, 9)
    assert loop.answer(prompt, 20, temperature=1e-6)[0] == plain.answer(prompt, 20)
    assert loop.answer(prompt, 20, temperature=5.0, top_k=1)[0] == plain.answer(prompt, 20)
    assert loop.answer(prompt, 20, temperature=5.0, top_p=0.0)[0] == plain.answer(prompt, 20)


def test_an_encoder_is_refused():
    head = '<ir_version: 10, opset_import: ["": 23]>'
    text = head + "encode (int64[b,s] input_ids) => (int64[b,s] y) { y = Abs(input_ids) }"
    assert "generates nothing" in refusal(ir.from_onnx_text(text))


def test_a_decoder_without_fused_attention_is_refused(tiny_export):
    assert "needs GroupQueryAttention" in refusal(tiny_export("llama"))


def test_a_graph_that_is_a_loop_already_is_refused(fused):
    assert "generates nothing" in refusal(AddSpeculativeLoop()(fused("llama")).model)


def test_unknown_inputs_are_refused(fused):
    model = fused("llama")
    kind = ir.TensorType(ir.DataType.INT64)
    model.graph.inputs.append(ir.Value(name="pixels", shape=ir.Shape([1]), type=kind))
    assert "pixels" in refusal(model)


def refusal(model: ir.Model) -> str:
    step: DerivingPass = AddSpeculativeLoop()
    with pytest.raises(ir.passes.PreconditionError) as caught:
        step(model)
    assert isinstance(caught.value.__cause__, PassRefused)
    return str(caught.value.__cause__)


def test_a_run_can_be_cancelled(fused):
    model = fused("llama")
    model.metadata_props["onnxforge.context_length"] = str(10**7)
    for node in model.graph:  # no rotary tables: they would end with the real context
        if node.op_type == "GroupQueryAttention":
            node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
            node.replace_input_with(7, None)
            node.replace_input_with(8, None)
    options = ort.RunOptions()
    options.log_severity_level = 4
    feeds = {
        "input_ids": np.array([some_prompt(0, 9)], np.int64),
        "max_new_tokens": np.array(20_000),
        "eos_token_id": np.array([], np.int64),
        "max_draft_tokens": np.array(0),
    }
    loop, asked = Loop(model).session, 0.0

    def cancel() -> None:
        nonlocal asked
        asked = time.perf_counter()
        options.terminate = True

    timer = threading.Timer(0.5, cancel)
    timer.start()
    with pytest.raises(Exception, match="terminate"):
        loop.run(None, feeds, options)
    assert time.perf_counter() - asked < 0.25
    timer.join()
