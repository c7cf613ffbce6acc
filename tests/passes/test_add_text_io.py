"""`add-text-io`: the ids and the text of the tokenizers library, and the answer of `add-speculative-loop`."""

import json
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from onnxforge.compiler import pipeline
from onnxforge.compiler.targets import TARGETS
from onnxforge.compiler.text_check import corpus, decoder
from onnxforge.compiler.text_corpus import HARD
from onnxforge.compiler.text_rules_of import shown, text_rules
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.passes.add_text_io import AddTextIo
from onnxforge.passes.base import PassRefused
from onnxforge.passes.text_graph import tokenize
from onnxforge.passes.text_rules import attach_rules

CUTS = ("gpt2", "gpt2-split", "digits", "llama3", "qwen2")
VOCAB = 600
FUSED = tuple(text for text in TARGETS[0].passes if text != "add-speculative-loop")
Encode = Callable[[str], list[int]]
FIXTURE = [HealthCheck.function_scoped_fixture]


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])


def encoder(stored: bytes) -> Encode:
    """The graph's way from text to ids, on its own."""
    imports = {"": 23, "ai.onnx.ml": 4, "com.microsoft": 1}
    text = ir.Value(name="text", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.STRING))
    graph = ir.Graph([text], [], nodes=[], name="encoder", opset_imports=imports)
    ids = tokenize(graph, text, text_rules(stored), 23)
    ids.type, ids.shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["n"])
    graph.outputs.append(ids)
    run = session(ir.Model(graph, ir_version=10))
    return lambda words: run.run(None, {"text": np.array([words], object)})[0].tolist()


@pytest.fixture(scope="session")
def both(tiny_bpe) -> Callable[..., tuple[Encode, Tokenizer]]:
    made: dict[str, tuple[Encode, Tokenizer]] = {}

    def make(cut: str) -> tuple[Encode, Tokenizer]:
        if cut not in made:
            made[cut] = encoder(tiny_bpe(cut)), Tokenizer.from_str(tiny_bpe(cut).decode())
        return made[cut]

    return make


@pytest.mark.parametrize("cut", CUTS)
def test_ids_are_those_of_the_tokenizers_library(both, cut: str):
    encode, tokenizer = both(cut)
    found = list(corpus(tokenizer))
    assert len(found) > 1000
    for text in (*found[: len(HARD)], *found[len(HARD) :: 4]):  # the compiler takes them all
        assert encode(text) == tokenizer.encode(text).ids, repr(text)


@pytest.mark.parametrize("cut", CUTS)
@given(text=st.text(max_size=40))
@settings(max_examples=60, deadline=None, suppress_health_check=FIXTURE)
def test_any_text_of_any_characters(both, cut: str, text: str):
    encode, tokenizer = both(cut)
    assert encode(text) == tokenizer.encode(text).ids


def test_every_kind_of_character_on_every_page(both):
    """One character of each page of 16, with letters, numbers and spaces beside it."""
    encode, tokenizer = both("digits")
    codes = [code for code in range(0, 0x110000, 16) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 1000):
        text = "".join(f"{chr(code)}a{chr(code)} {chr(code)}1" for code in codes[start : start + 1000])
        assert encode(text) == tokenizer.encode(text).ids


def test_bytes_without_a_token_are_left_out(tiny_bpe):
    stored = tiny_bpe("gpt2", 400, False)
    tokenizer = Tokenizer.from_str(stored.decode())
    missing = "\x06\U000a05cc"
    assert tokenizer.encode("\x06").ids == []
    encode = encoder(stored)
    for text in (missing, f"a{missing}b", f" {missing} "):
        assert encode(text) == tokenizer.encode(text).ids


def test_a_prompt_that_is_no_utf8_is_an_error(both):
    encode, _ = both("gpt2")
    with pytest.raises(UnicodeEncodeError):  # Python cannot hand it over
        encode("a\udc80b")


@pytest.mark.parametrize("cut", ["gpt2", "llama3"])
@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=FIXTURE)
def test_decoded_text_is_that_of_the_tokenizers_library(decoders, cut: str, data: st.DataObject):
    """The lowest ids are single bytes: characters cut short, and bytes that are no UTF-8."""
    decode, tokenizer = decoders(cut)
    ids = data.draw(st.lists(st.integers(0, 280) | st.integers(0, VOCAB - 1), max_size=12))
    assert decode(ids) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.fixture(scope="session")
def decoders(tiny_bpe) -> Callable[..., tuple[Callable[[Sequence[int]], str], Tokenizer]]:
    made = {cut: decoder(shown(tiny_bpe(cut))) for cut in ("gpt2", "llama3")}
    return lambda cut: (made[cut], Tokenizer.from_str(tiny_bpe(cut).decode()))


def test_ids_beyond_the_vocabulary_show_nothing(decoders):
    decode, tokenizer = decoders("gpt2")
    ids = tokenizer.encode("ab").ids
    assert decode([*ids, VOCAB + 40, *ids]) == tokenizer.decode([*ids, VOCAB + 40, *ids]) == "abab"


@pytest.fixture(scope="session")
def model(tiny_export, tiny_bpe) -> Callable[..., ir.Model]:
    """A finished llama with the rules of a tokenizer; ``before`` and ``after`` are put around a prompt."""

    def make(before: int | None = None, after: int | None = None) -> ir.Model:
        made = tiny_export("llama", None, vocab_size=VOCAB)
        for step in pipeline.parse(FUSED):
            step(made)
        described = json.loads(tiny_bpe("llama3"))
        if before is not None:
            special = [{"SpecialToken": {"id": text, "type_id": 0}} for text in ("<|start|>", "<|end|>")]
            sequence = {"Sequence": {"id": "A", "type_id": 0}}
            tokens = {
                text: {"id": text, "ids": [number], "tokens": [text]}
                for text, number in (("<|start|>", before), ("<|end|>", after))
            }
            described["post_processor"] = {
                "type": "TemplateProcessing",
                "single": [special[0], sequence, special[1]],
                "pair": [sequence, sequence],
                "special_tokens": tokens,
            }
        attach_rules(made, text_rules(json.dumps(described).encode()))
        return made

    return make


def answer(run: ort.InferenceSession, text: str, new: int, **more: object) -> tuple[str, list[int]]:
    feeds = {
        "prompt": np.array([text], object),
        "max_new_tokens": np.array(new),
        "max_draft_tokens": np.array(4),
    }
    feeds |= {"eos_token_id": np.array([], np.int64)} | {
        name: np.array(value) for name, value in more.items()
    }
    said, sequences, *counts = run.run(None, feeds)
    assert len(counts) == 3
    return str(said[0]), sequences[0].tolist()


def test_the_answer_is_that_of_the_loop(model, tiny_bpe):
    made = model()
    run, loop = session(AddTextIo()(made).model), session(AddSpeculativeLoop()(made).model)
    tokenizer = Tokenizer.from_str(tiny_bpe("llama3").decode())
    for text in ("x", "Hello <|start|>wörld", "日本 12 \n", "<|end|><|end"):
        ids = tokenizer.encode(text).ids
        feeds = {"input_ids": [ids], "max_new_tokens": 20, "max_draft_tokens": 4, "eos_token_id": []}
        wanted = loop.run(["sequences"], {name: np.array(feeds[name], np.int64) for name in feeds})[0][
            0
        ].tolist()
        said, sequence = answer(run, text, 20)
        assert sequence == wanted
        assert said == tokenizer.decode(wanted[len(ids) :], skip_special_tokens=True)


def test_special_tokens_around_the_prompt_can_be_left_out(model, tiny_bpe):
    run = session(AddTextIo()(model(1, 0)).model)
    ids = Tokenizer.from_str(tiny_bpe("llama3").decode()).encode("ab 1").ids
    assert answer(run, "ab 1", 0) == ("", [1, *ids, 0])
    assert answer(run, "ab 1", 0, add_special_tokens=False) == ("", ids)
    assert answer(run, "", 0) == ("", [1, 0])


def test_an_empty_prompt_has_an_empty_answer(model):
    assert answer(session(AddTextIo()(model()).model), "", 8) == ("", [])


def test_a_prompt_that_fills_the_context_comes_back_alone(model):
    said, sequence = answer(session(AddTextIo()(model()).model), "\x01a" * 60, 8)
    assert said == ""
    assert len(sequence) == 120


def test_the_finished_model_is_left_alone_and_shares_its_weights(model):
    made = model()
    before = ir.to_proto(made).SerializeToString(deterministic=True)
    derived = AddTextIo()(made).model
    assert ir.to_proto(made).SerializeToString(deterministic=True) == before
    own = {id(value.const_value) for value in made.graph.initializers.values()}
    large = [v for g in derived.graphs() for v in g.initializers.values() if v.const_value.nbytes > 1024]
    assert large
    assert {id(value.const_value) for value in large} <= own


def test_two_derivations_are_equal(model):
    made = model()
    once, twice = (
        ir.to_proto(AddTextIo()(made).model).SerializeToString(deterministic=True) for _ in range(2)
    )
    assert once == twice


def refusal(made: ir.Model) -> str:
    with pytest.raises(Exception, match="AddTextIo") as refused:
        AddTextIo()(made)
    assert isinstance(refused.value.__cause__, PassRefused)
    return str(refused.value.__cause__)


def test_a_model_without_rules_or_a_loop_is_refused(model):
    made = model()
    assert "generates nothing" in refusal(AddSpeculativeLoop()(made).model)
    made.meta.clear()
    assert "without the rules of its tokenizer" in refusal(made)
