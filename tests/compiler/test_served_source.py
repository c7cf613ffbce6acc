"""What of a source is needed when its vocabulary is cut, and what is then served in its place."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cut_vocabularies import LINES, SIZE, corpus_in
from tokenizers import Tokenizer

from onnxforge.compiler.calibration_data import attach, calibration_batches, data_of
from onnxforge.compiler.count_tokens import CountTokens
from onnxforge.compiler.errors import RequestRefused, SelfCheckFailed
from onnxforge.compiler.served_source import check_vocabulary, served_source
from onnxforge.compiler.tokenizer_agreement import check_agreement
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.base import PassRefused
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.token_counts import counts_of, kept_tokens, leave_kept


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus_in(tmp_path_factory.mktemp("text"))


@pytest.fixture
def counted(tiny_export: Callable, tiny_bpe: Callable, corpus: Path) -> Callable:
    """``counted(named, step)``: a tiny llama and its source, with the tokens of ``named`` counted."""

    def make(named: str | Path = corpus, step: CountTokens | None = None) -> tuple[ir.Model, Source]:
        model = tiny_export("llama", vocab_size=SIZE, num_hidden_layers=2)
        source = Source(
            "here",
            SourceKind.FOLDER,
            {"vocab_size": SIZE, "eos_token_id": 0},
            sidecars={"tokenizer.json": tiny_bpe("gpt2", 600)},
        )
        attach(model, source, str(named))
        (step or CountTokens())(model)
        return model, source

    return make


def test_counts_are_those_of_the_tokenizer(counted: Callable):
    model, source = counted()
    counts = counts_of(model)
    tokenizer = Tokenizer.from_str(source.sidecars["tokenizer.json"].decode())
    ids = tokenizer.encode(LINES).ids  # a block ends at a line's end, where this tokenizer cuts too
    assert abs(int(counts.counts.sum()) - len(ids)) < 5
    assert set(np.flatnonzero(counts.counts)) >= set(ids)
    assert counts.needed[[0, 1, 2]].all()
    assert counts.needed.sum() == 3 + 256


def test_what_the_chat_template_writes_is_needed(counted: Callable, corpus: Path):
    model, source = counted()
    plain = counts_of(model).needed
    template = b"{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}the model: "
    chatty = replace(source, sidecars={**source.sidecars, "chat_template.jinja": template})
    attach(model, chatty, str(corpus))
    CountTokens()(model)
    ids = Tokenizer.from_str(source.sidecars["tokenizer.json"].decode()).encode("the model: ").ids
    added = set(np.flatnonzero(counts_of(model).needed)) - set(np.flatnonzero(plain))
    assert added == set(ids) - set(np.flatnonzero(plain))
    assert added


def test_given_ids_follow(counted: Callable, tmp_path: Path):
    model, _ = counted()
    PruneVocabulary(multiple=1)(model)
    kept = kept_tokens(model)
    gone = np.setdiff1d(np.arange(600), kept)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"input_ids": kept[5:300:9].tolist()}))
    attach(model, data_of(model).source, str(rows))
    (batch,) = calibration_batches(model, 4, 64)
    assert batch.ids[0].tolist() == list(range(5, 300, 9))
    rows.write_text(json.dumps({"input_ids": [int(gone[0])]}))
    with pytest.raises(PassRefused, match="removed"):
        list(calibration_batches(model, 4, 32))


def test_what_was_read_before_the_cut_is_read_anew(counted: Callable):
    model, _ = counted()
    before = calibration_batches(model, 2, 32).use
    (first, *_) = calibration_batches(model, 2, 32)
    PruneVocabulary(multiple=1)(model)
    after = calibration_batches(model, 2, 32).use
    (again, *_) = calibration_batches(model, 2, 32)
    assert before.ids_sha256 != after.ids_sha256
    assert kept_tokens(model)[again.ids].tolist() == first.ids.tolist()


@pytest.mark.parametrize(
    ("named", "step", "message"),
    [
        ("self", CountTokens(), "what the model makes up shows too little"),
        ("short.txt", CountTokens(), "holds 2 tokens, and 1,000 are wanted"),
    ],
)
def test_data_that_says_too_little_is_refused(counted: Callable, tmp_path: Path, named, step, message):
    short = tmp_path / "short.txt"
    short.write_text("a b")
    with pytest.raises(PassRefused, match=message):
        _called(counted, short if named == "short.txt" else named, step)


def _called(counted: Callable, named: str | Path, step: CountTokens) -> None:
    try:
        counted(named, step)
    except ir.passes.PassError as error:
        raise error.__cause__ from None


def test_a_tokenizer_that_reads_otherwise_is_found_out(counted: Callable):
    """Were a merge lost that a kept token needs, the compile would stop."""
    model, source = counted()
    PruneVocabulary(multiple=1)(model)
    served = served_source(source, model)
    check_agreement(source, served, model)
    broken = json.loads(served.sidecars["tokenizer.json"])
    del broken["model"]["merges"][3]
    worse = replace(served, sidecars={"tokenizer.json": json.dumps(broken).encode()})
    with pytest.raises(SelfCheckFailed, match="was read as the kept tokens"):
        check_agreement(source, worse, model)


def test_a_model_that_is_not_cut_keeps_its_source(counted: Callable):
    model, source = counted()
    assert served_source(source, model) is source


def test_side_files_follow(tiny_bpe: Callable):
    stored = tiny_bpe("gpt2", 600)
    files = {
        "tokenizer.json": stored,
        "tokenizer_config.json": json.dumps(
            {"added_tokens_decoder": {"0": {"content": "a"}, "2": {"content": "c"}, "5": {"content": "?"}}}
        ).encode(),
        "added_tokens.json": b'{"<|end|>": 0}',
        "generation_config.json": json.dumps(
            {
                "eos_token_id": [0, 2],
                "pad_token_id": -1,
                "forced_decoder_ids": [[1, 2]],
                "suppress_tokens": [2, 5, 400],
                "bad_words_ids": [[2], [400, 2]],
                "max_length": 20,
                "temperature": 2,
            }
        ).encode(),
        "vocab.json": b"{}",
        "merges.txt": b"",
    }
    config = {"vocab_size": 640, "text_config": {"vocab_size": 640, "pad_token_id": 2}, "hidden_size": 640}
    source = Source("here", SourceKind.FOLDER, config, sidecars=files)
    pieces = check_vocabulary(source)
    kept = np.array(sorted(pieces.needed))
    assert 5 in kept
    assert 400 not in kept
    model = ir.Model(ir.Graph([], [], nodes=[]), ir_version=10)
    leave_kept(model, kept)
    served = served_source(source, model)
    new = {old: number for number, old in enumerate(kept.tolist())}
    n = len(kept)
    assert served.config == {
        "vocab_size": n,
        "text_config": {"vocab_size": n, "pad_token_id": new[2]},
        "hidden_size": 640,
    }
    assert json.loads(served.sidecars["generation_config.json"]) == {
        "eos_token_id": [new[0], new[2]],
        "pad_token_id": -1,
        "forced_decoder_ids": [[1, new[2]]],
        "suppress_tokens": [new[2], new[5]],
        "bad_words_ids": [[new[2]]],
        "max_length": 20,
        "temperature": 2,
    }
    assert json.loads(served.sidecars["added_tokens.json"]) == {"<|end|>": new[0]}
    decoder = json.loads(served.sidecars["tokenizer_config.json"])["added_tokens_decoder"]
    assert decoder == {
        str(new[old]): {"content": c} for old, c in ((0, "a"), (2, "c"), (5, "?")) if old in new
    }
    assert not {"vocab.json", "merges.txt"} & served.sidecars.keys()


def test_ids_of_configurations_are_needed_and_must_exist(tiny_bpe: Callable):
    files = {"tokenizer.json": tiny_bpe("gpt2", 600)}
    source = Source("here", SourceKind.FOLDER, {"vocab_size": 640, "pad_token_id": 620}, sidecars=files)
    with pytest.raises(RequestRefused, match=r"names token 620, and tokenizer\.json has none"):
        check_vocabulary(source)


def test_tokens_of_configurations_are_needed_by_text(counted: Callable, corpus: Path):
    model, source = counted()
    chosen = [450, 460]
    one, other = (token for token, number in check_vocabulary(source).ids.items() if number in chosen)
    named = {"mask_token": {"content": one}, "additional_special_tokens": [other], "model_max_length": 9}
    files = {**source.sidecars, "tokenizer_config.json": json.dumps(named).encode()}
    assert not counts_of(model).needed[chosen].any()
    attach(model, replace(source, sidecars=files), str(corpus))
    CountTokens()(model)
    assert counts_of(model).needed[chosen].all()


def test_a_tokenizer_with_ids_that_the_library_reads_otherwise_is_refused(tiny_bpe: Callable):
    described = json.loads(tiny_bpe("gpt2", 600))
    described["added_tokens"].append({**described["added_tokens"][0], "id": 700, "content": "<far>"})
    stored = json.dumps(described).encode()
    source = Source("here", SourceKind.FOLDER, {"vocab_size": 800}, sidecars={"tokenizer.json": stored})
    with pytest.raises(RequestRefused, match="reads other ids"):
        check_vocabulary(source)
