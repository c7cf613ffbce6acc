"""A vocabulary that is cut: graph, tokenizer, configurations, calibration and proof speak the same ids."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from onnxforge.compiler import cli, driver
from onnxforge.compiler.calibration_data import attach, calibration_batches, data_of
from onnxforge.compiler.count_tokens import CountTokens
from onnxforge.compiler.errors import RequestRefused, SelfCheckFailed
from onnxforge.compiler.eval_text import calibration_text, evaluation_text
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.request import CompileRequest
from onnxforge.compiler.served_source import check_cut, check_vocabulary, served_source
from onnxforge.compiler.target_file import find_target
from onnxforge.compiler.targets import Target
from onnxforge.compiler.token_map import token_map
from onnxforge.compiler.tokenizer_agreement import check_agreement
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.base import PassRefused
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.token_counts import counts_of, kept_tokens, leave_kept
from onnxforge.runtimes import Decoder, Encoder, load

SIZE = 640
"""Rows of the model's table; the tokenizers have 600 tokens."""
CUT = ("count-tokens", "prune-vocabulary{multiple=8}")
LINES = calibration_text().text[:60_000]
OTHER = "naïve Straße, русский язык 日本語"


def cut_before(name: str, *marks: str) -> Target:
    """The target ``name``, its vocabulary cut in front of the first of its passes that ``marks`` names."""
    target = find_target(name)
    at = next(i for i, text in enumerate(target.passes) if text.split("{")[0] in marks)
    return replace(target, passes=(*target.passes[:at], *CUT, *target.passes[at:]))


def wordpiece() -> bytes:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([evaluation_text().text[:100_000], LINES], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer.to_str().encode()


@pytest.fixture(scope="session")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, tiny_torch: Callable, tiny_bpe: Callable
) -> Callable:
    """``checkpoint(model_type, task)``: a folder with weights, a trained tokenizer and configurations."""
    made: dict[str, Path] = {}

    def make(model_type: str, task: str | None = None, **config: int) -> Path:
        if model_type not in made:
            folder = made[model_type] = tmp_path_factory.mktemp(model_type)
            shape = {"vocab_size": SIZE, "num_hidden_layers": 2, "max_position_embeddings": 128}
            tiny_torch(model_type, task, **shape, **config).save_pretrained(folder)
            decoder = model_type != "bert"
            stored = tiny_bpe("gpt2", 600) if decoder else wordpiece()
            (folder / "tokenizer.json").write_bytes(stored)
            settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
            (folder / "tokenizer_config.json").write_text(json.dumps(settings))
            if not decoder:
                ids = json.loads(stored)["model"]["vocab"]
                (folder / "vocab.txt").write_text("".join(f"{t}\n" for t in sorted(ids, key=ids.get)))
        return made[model_type]

    return make


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text(LINES)
    return path


_EXPORTED: dict[str, ir.Model] = {}


def compiled(model: Path, output: Path, target: Target, corpus: Path, *, proof: bool = False) -> Path:
    """``proof`` runs its quality part, on few windows. A model is exported once."""

    def export(source: Source, task: str | None) -> ir.Model:
        if source.ref not in _EXPORTED:
            _EXPORTED[source.ref] = driver.house().export_model(source, task)
        return _EXPORTED[source.ref]

    def quick(staging, source, model, options, ledger):
        return prove(staging, source, model, replace(options, speed=False, windows=4, window=64), ledger)

    asked = replace(target, calibration=str(corpus)) if "count-tokens" in target.pass_names else target
    parts = replace(driver.house(), prove=quick, export_model=export, self_check=lambda folder: None)
    driver.compile_model(CompileRequest(str(model), output, asked, proof=proof), parts=parts)
    return output


def read(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable, corpus: Path) -> Path:
    """The llama as it is, for cpu-fp32."""
    output = tmp_path_factory.mktemp("whole") / "out"
    return compiled(checkpoint("llama"), output, find_target("cpu-fp32"), corpus)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable, corpus: Path) -> Path:
    """The llama with the tokens of the corpus, for cpu-fp32, proven."""
    output = tmp_path_factory.mktemp("small") / "out"
    return compiled(checkpoint("llama"), output, cut_before("cpu-fp32", "cleanup"), corpus, proof=True)


def test_logits_are_those_of_the_kept_tokens(whole: Path, small: Path):
    sessions = GraphSession(whole), GraphSession(small)
    tokens = token_map(*sessions)
    assert 280 < len(tokens.kept) < 500
    assert len(tokens.kept) % 8 == 0
    ids = np.random.default_rng(0).integers(0, len(tokens.kept), (1, 24))
    theirs, ours = sessions[0].logits(tokens.old(ids)), sessions[1].logits(ids)
    assert theirs.shape == (24, SIZE)
    np.testing.assert_allclose(ours, theirs[:, tokens.kept], atol=1e-4)


def test_every_file_speaks_the_new_ids(whole: Path, small: Path):
    kept = token_map(GraphSession(whole), GraphSession(small)).kept
    assert read(small, "config.json")["vocab_size"] == len(kept)
    assert read(small, "genai_config.json")["model"]["vocab_size"] == len(kept)
    for name in ("config.json", "generation_config.json"):
        before, after = read(whole, name), read(small, name)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            assert kept[after[key]] == before[key]
    old, new = (Tokenizer.from_file(str(path / "tokenizer.json")) for path in (whole, small))
    assert {token.content for token in new.get_added_tokens_decoder().values()} == {
        token.content for token in old.get_added_tokens_decoder().values()
    }
    for text in (LINES, OTHER, "日本語 🙂 \x00"):
        assert new.decode(new.encode(text).ids) == old.decode(old.encode(text).ids)
    assert new.encode(LINES).tokens == old.encode(LINES).tokens, "the corpus is read as it was"
    assert len(new.encode(OTHER).ids) > len(old.encode(OTHER).ids)


def test_a_graph_with_text_inside_reads_the_new_ids(tmp_path: Path, checkpoint: Callable, corpus: Path):
    target = cut_before("cpu-fp32", "cleanup")
    target = replace(target, passes=(*target.passes, "add-text-io"))
    made = compiled(checkpoint("llama"), tmp_path / "out", target, corpus)
    session = ort.InferenceSession(made / "onnx" / "model_text.onnx")
    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    limits = {name: np.array(0) for name in ("max_new_tokens", "max_draft_tokens")}
    for text in ("Define a class", OTHER):
        feeds = {"prompt": np.array([text], object), "eos_token_id": np.empty(0, np.int64), **limits}
        (ids,) = session.run(["sequences"], feeds)
        assert ids[0].tolist() == tokenizer.encode(text).ids


def test_it_generates(small: Path):
    with load(small) as model:
        assert isinstance(model, Decoder)
        said = model.generate("Define a class", max_new_tokens=8, do_sample=False)
        drafted = model.generate("Define a class", max_new_tokens=8, do_sample=False, max_draft_tokens=4)
    assert len(said.token_ids) == len(drafted.token_ids)


def test_the_report_says_what_was_compared(small: Path):
    report = (small / "report" / "index.md").read_text()
    summary = read(small, "artifact.json")["summary"]
    assert summary["max_abs"] < 1e-4
    assert summary["mean_kl"] < 1e-8
    assert summary["top1_agreement"] == 1
    assert 0.5 < summary["perplexity_ratio"] < 2
    assert summary["perplexity_ratio"] != pytest.approx(1, abs=1e-9), "the text has tokens that were removed"
    assert "of the source's 600 tokens, and writes this text with 1." in report
    assert "Perplexity is per token of the source's own reading" in report
    assert "prune-vocabulary{multiple=8}" in report


def test_calibration_behind_it_sees_the_new_ids(
    tmp_path: Path, checkpoint: Callable, corpus: Path, small: Path
):
    target = cut_before("cpu-int8", "calibrate")
    passes = tuple(f"{p[:-1]},min_elements=1}}" if p.startswith("quantize-w") else p for p in target.passes)
    made = compiled(checkpoint("llama"), tmp_path / "int8", replace(target, passes=passes), corpus)
    assert read(made, "config.json")["vocab_size"] == read(small, "config.json")["vocab_size"]
    ids = np.random.default_rng(0).integers(0, read(made, "config.json")["vocab_size"], (1, 24))
    theirs, ours = GraphSession(small).logits(ids), GraphSession(made).logits(ids)
    assert 0.98 < np.vdot(theirs, ours) / np.linalg.norm(theirs) / np.linalg.norm(ours) < 1 - 1e-9


def test_an_encoder(tmp_path: Path, checkpoint: Callable, corpus: Path):
    source = checkpoint("bert", "feature-extraction")
    made = compiled(source, tmp_path / "out", cut_before("cpu-fp32", "cleanup"), corpus, proof=True)
    summary = read(made, "artifact.json")["summary"]
    assert summary["max_abs"] < 1e-4
    assert "with other tokens than the source, and they count for the cosine only" in summary["protocol"]
    size = read(made, "config.json")["vocab_size"]
    names = (made / "vocab.txt").read_text().splitlines()
    ids = Tokenizer.from_file(str(made / "tokenizer.json")).get_vocab()
    assert len(names) == size < 600
    assert [ids[name] for name in names] == list(range(size))
    plain = compiled(source, tmp_path / "plain", find_target("cpu-fp32"), corpus)
    with load(made) as few, load(plain) as all_of_them:
        assert isinstance(few, Encoder)
        sentences = LINES.splitlines()[:40]
        np.testing.assert_allclose(few.encode(sentences), all_of_them.encode(sentences), atol=1e-5)


def test_a_head_that_fills_masks(tiny_export: Callable, tmp_path: Path, corpus: Path):
    model = tiny_export("bert", "fill-mask", vocab_size=SIZE, num_hidden_layers=1)
    source = Source("here", SourceKind.FOLDER, {"vocab_size": SIZE}, sidecars={"tokenizer.json": wordpiece()})
    before = model.clone()
    attach(model, source, str(corpus))
    CountTokens()(model)
    PruneVocabulary()(model)
    kept = kept_tokens(model)
    logits = [_run(part, ids) for part, ids in ((before, kept[None, :7]), (model, np.arange(7)[None]))]
    np.testing.assert_allclose(logits[1], logits[0][..., kept], atol=1e-5)


def _run(model: ir.Model, ids: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    feeds = {item.name: np.ones_like(ids) for item in session.get_inputs()} | {"input_ids": ids}
    return session.run(
        ["logits"], {k: v for k, v in feeds.items() if k in {i.name for i in session.get_inputs()}}
    )[0]


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


def test_no_tokenizer_is_refused_before_the_export():
    source = Source("here", SourceKind.FOLDER, {"vocab_size": 640})
    check_cut(find_target("cpu-fp32"), source)
    with pytest.raises(RequestRefused, match=r"here brings no tokenizer\.json"):
        check_cut(cut_before("cpu-fp32", "cleanup"), source)


def test_a_target_file_can_ask_for_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "small.toml"
    passes = [*find_target("cpu-fp32").passes[:-1], "count-tokens", "prune-vocabulary{share=0.5}", "cleanup"]
    file.write_text(f'name = "small"\nsummary = "s"\npasses = {json.dumps(passes)}\n')
    arguments = [
        "m",
        "-t",
        str(file),
        "--calibration",
        "a.txt",
        "--dry-run",
        "--set",
        "prune-vocabulary.share=0.75",
    ]
    assert cli.run_verb("compile", arguments) == 0
    assert "prune-vocabulary{share=0.75}" in json.loads(capsys.readouterr().out)["target"]["passes"]
