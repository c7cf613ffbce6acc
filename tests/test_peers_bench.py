"""What `bench/peers.py` concludes from what it measured, and what it keeps of a run that was killed."""

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

BENCH = Path(__file__).parents[1] / "bench"


@pytest.fixture(autouse=True)
def _bench_modules(monkeypatch):
    """Scripts of `bench/` import one another by name."""
    monkeypatch.syspath_prepend(str(BENCH))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if (BENCH / f"{name}.py").is_file():
            del sys.modules[name]


def module(name):
    return importlib.import_module(name)


def aim(key):
    return next(aim for aim in module("peers_rules").AIMS if aim.key == key)


def test_weights_are_of_equal_quality_within_two_percent_of_full_precision():
    rules = module("peers_rules")
    found = rules.equal_quality({"full": 10.0, "int8": 10.2, "int4": 10.21}, "full")
    assert found == {"full": True, "int8": True, "int4": False}
    assert rules.equal_quality({"int8": 10.2}, "full") == {"int8": None}


def test_the_best_peer_is_not_ours_and_not_of_another_quality():
    rules = module("peers_rules")
    rates = {"ours": 900.0, "also ours": 800.0, "rough": 700.0, "slow": 100.0, "unscored": 300.0}
    equal = {"rough": False, "slow": True, "unscored": None}
    assert rules.best_peer(rates, ["ours", "also ours"], equal, higher=True) == "unscored"
    assert rules.best_peer(rates, ["ours", "also ours"], equal, higher=False) == "slow"
    assert rules.best_peer({"ours": 1.0, "rough": 2.0}, ["ours"], equal, higher=True) is None


@pytest.mark.parametrize(
    ("key", "ours", "theirs", "word"),
    [
        ("pp512", 200.0, 100.0, "held"),
        ("pp512", 199.0, 100.0, "MISSED"),
        ("first_token", 0.5, 1.0, "held"),
        ("first_token", 0.6, 1.0, "MISSED"),
        ("load", 1.0, 1.0, "held"),
    ],
)
def test_an_aim_is_held_or_missed(key, ours, theirs, word):
    found = module("peers_rules").verdict(aim(key), {"ours": ours, "peer": theirs}, "ours", "peer")
    assert found.word == word
    assert found.reached == pytest.approx(ours / theirs)


def test_an_aim_without_a_peer_or_without_ours_is_not_measured():
    rules = module("peers_rules")
    assert rules.verdict(aim("pp512"), {"ours": 1.0}, "ours", None).word == "not measured"
    assert rules.verdict(aim("pp512"), {"peer": 1.0}, "ours", "peer").word == "not measured"


def test_a_peer_that_loses_by_speculating_counts_without():
    ways = {"a": ["a plain", "a drafts"], "b": ["b plain", "b drafts"], "c": ["c plain"]}
    rates = {"a plain": 100.0, "a drafts": 60.0, "b plain": 90.0, "b drafts": 150.0}
    assert module("peers_rules").better_way(rates, ways) == {"a": 100.0, "b": 150.0}


def test_spread_is_half_the_distance_between_the_quartiles():
    samples = module("peers_rules").Samples
    assert samples((90.0, 95.0, 100.0, 105.0, 110.0)).spread == pytest.approx(0.05)
    assert samples((1.0, 2.0)).spread_text == ""
    assert samples((90.0, 95.0, 100.0, 105.0, 110.0), center=50.0).median == 50


def test_perplexity_is_over_all_tokens_and_compared_window_by_window():
    quality = module("peers_quality")
    scores = {
        "full": {"nll": [100.0, 220.0], "tokens": [50, 100]},
        "int8": {"nll": [101.0, 222.0], "tokens": [50, 100]},
        "other windows": {"nll": [1.0], "tokens": [50]},
    }
    found = quality.qualities(scores, {"int8, last logits": "int8"}, "full")
    assert set(found) == {"full", "int8", "int8, last logits"}
    assert found["full"].perplexity == pytest.approx(math.exp(320 / 150))
    assert found["int8"].ratio == pytest.approx(math.exp(3 / 150))
    assert found["int8"].error == pytest.approx(0)  # both windows say 0.02 nats
    assert quality.qualities(scores, {}, "missing") == {}


def test_every_child_scores_as_the_compiler_does():
    from onnxforge.compiler.eval_text import Window
    from onnxforge.compiler.perplexity import perplexity

    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(150, 40)).astype(np.float32), rng.integers(0, 40, 150)

    class Model:
        def logits(self, _):
            return logits

    found = module("peer_process").likelihood(logits, ids.tolist(), 3)
    wanted = perplexity(Model(), [Window(ids[None], 3)])
    assert found["tokens"] == wanted.tokens == 147
    assert found["nll"] / found["tokens"] == pytest.approx(wanted.nll, rel=1e-9)


def test_what_was_measured_outlives_the_run_and_is_not_mixed_with_another(tmp_path):
    state = module("peers_state").State
    path, identity = tmp_path / "run.json", {"cpu": "this", "artifacts": ["a 1"]}
    first = state.opened(path, identity, resume=False)
    first.add("speed", {"systems": {}})
    first.score("quality", "int8", {"nll": [1.0]})
    again = state.opened(path, identity, resume=True)
    assert again.sessions("speed") == [{"systems": {}}]
    assert again.scores("quality") == {"int8": {"nll": [1.0]}}
    assert again.sessions("encoder") == []
    with pytest.raises(SystemExit, match="another artifacts"):
        state.opened(path, {**identity, "artifacts": ["a 2"]}, resume=True)
    assert state.opened(path, identity, resume=False).sessions("speed") == []


def answer(tokens, rest):
    return {"tokens": tokens, "first": 0.1, "rest": rest, "drafted": 0, "accepted": 0, "steps": 0}


def test_one_disturbed_answer_does_not_spoil_a_rate():
    generation = module("peers_generation")
    prompt = module("speculation_prompts").BenchPrompt
    prompts = [prompt("one", "code", ""), prompt("two", "open", ""), prompt("not asked", "open", "")]
    quiet, disturbed = answer(11, 0.1), answer(11, 10.0)
    sessions = [{"answers": {"way": {"one": one, "two": quiet}}} for one in (quiet, disturbed, quiet)]
    found = generation.generation_samples(sessions, prompts)
    assert found["code"]["way"].median == pytest.approx(100)
    assert found["grounded"]["way"].values == pytest.approx((100, 1, 100))
    assert found["open"]["way"].median == pytest.approx(100)


def content():
    """Of a run: ours, a peer of equal quality and a rough one that is faster."""
    pages = {
        "ours": (True, 1000.0, 1.01, 100.0),
        "peer": (False, 400.0, 1.00, 80.0),
        "rough": (False, 900.0, 1.30, 300.0),
    }
    machine = {"bandwidth": 40e9, "integer_rate": 2e12}
    facts = {"ways": [], "size": 1_000_000, "streamed": 1_000_000_000, "cache_bytes": 0, "quality_of": ""}

    def speeds(prefill, decode):
        times = {"load": [0.5], "first_token": [512 / prefill], "peak_rss": 300_000_000}
        return {**times, "rates": {"pp512": [prefill] * 3, "tg @ d64": [decode] * 3}}

    reference = module("peers_systems").REFERENCE
    nlls = {name: 100 * math.log(10 * ratio) for name, (_, _, ratio, _) in pages.items()}
    nlls[reference] = 100 * math.log(10)
    return {
        "identity": {}, "macs": 1e8, "generation": [],
        "encoder_systems": {}, "encoder": [], "encoder_quality": {},
        "systems": {n: {**facts, "ours": ours} for n, (ours, *_) in pages.items()},
        "quality": {n: {"nll": [nll], "tokens": [100]} for n, nll in nlls.items()},
        "speed": [{"machine": machine, "systems": {n: speeds(p, d) for n, (_, p, _, d) in pages.items()}}],
    }  # fmt: skip


def test_the_page_holds_ours_against_the_best_peer_of_equal_quality():
    pages = module("peers_page")
    reading = pages.read(content())
    found = {v.aim.key: v for v in pages.verdicts(reading)}
    assert (found["pp512"].peer, found["pp512"].reached, found["pp512"].word) == ("peer", 2.5, "held")
    assert (found["tg @ d64"].reached, found["tg @ d64"].word) == (1.25, "held")
    assert found["grounded"].word == found["16 x 64"].word == "not measured"
    text = pages.page(reading, "a machine", {"x.png": "a plot"})
    assert "| rough †" in text
    assert "| peer †" not in text
    assert "1,000 ±0% (2.50x)" in text
    assert "a plot](x.png)" in text


def test_bounds_are_bytes_for_decoding_and_operations_for_prompts():
    found = module("peers_speed").bounds(content())
    assert found["pp512"]["ours"] == pytest.approx(2e12 / 2e8)
    assert found["tg @ d64"]["ours"] == pytest.approx(40)


def test_plots_show_what_was_measured(tmp_path):
    pages, plots = module("peers_page"), module("peers_plots")
    written = plots.write_plots(pages.read(content()), tmp_path, "peers")
    assert list(written) == ["peers-speed.png"]
    assert (tmp_path / "peers-speed.png").read_bytes().startswith(b"\x89PNG")


def test_environments_are_pinned_and_names_of_others_checked(tmp_path):
    environments = module("peers_environments")
    pins = [pin for pins in environments.REQUIREMENTS.values() for pin in pins]
    assert all(pin.count("==") == 1 for pin in pins)
    assert environments.pythons_from([f"genai={sys.executable}"]) == {"genai": sys.executable}
    with pytest.raises(SystemExit, match="want NAME="):
        environments.pythons_from([f"other={sys.executable}"])
    made = environments.Environments(tmp_path, {"genai": "/some/python"})
    assert made.python("genai") == "/some/python"


def test_a_conversion_that_fails_leaves_nothing_that_looks_whole(tmp_path):
    builds = module("peers_builds")
    made = builds.Builds("some/model", tmp_path, module("peers_environments").Environments(tmp_path))

    def fails(out):
        out.mkdir()
        raise SystemExit("no")

    with pytest.raises(SystemExit):
        made._once("thing", fails)
    done = made._once("thing", lambda out: out.write_text("whole"))
    assert done.read_text() == "whole"
    assert made._once("thing", fails) == done


def test_texts_have_exactly_as_many_tokens_as_asked(tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing

    words = {"[UNK]": 0, "[CLS]": 1, "apple": 2, "pear": 3, "of": 4, "x-y": 5}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    encoder = module("peers_encoder")
    known = encoder.one_token_words(tokenizer)
    assert known == ["apple", "pear"]
    texts = encoder.texts_of(tokenizer, known, 3, 9, seed=0)
    assert [len(row.ids) for row in tokenizer.encode_batch(texts)] == [9, 9, 9]
    assert json.dumps(texts) != json.dumps(encoder.texts_of(tokenizer, known, 3, 9, seed=1))


def test_llama_cpp_runs_the_file_as_it_is_beside_requantized_forms():
    kinds = module("peers_systems").llama_kinds
    assert kinds(Path("Some-Model.Q4_1.gguf")) == ("Q8_0", "Q4_0", "Q4_1")
    assert kinds(Path("Some-Model.Q8_0.gguf")) == ("Q8_0", "Q4_0")
