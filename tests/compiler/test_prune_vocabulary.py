"""A vocabulary that is cut: graph, tokenizer, configurations and proof of an artifact speak the same ids."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from cut_vocabularies import LINES, SIZE, corpus_in
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from onnxforge.compiler import cli, driver
from onnxforge.compiler.calibration_data import attach
from onnxforge.compiler.count_tokens import CountTokens
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.eval_text import evaluation_text
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.request import CompileRequest
from onnxforge.compiler.served_source import check_cut
from onnxforge.compiler.target_file import find_target
from onnxforge.compiler.targets import Target
from onnxforge.compiler.token_map import token_map
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.prune_vocabulary import PruneVocabulary
from onnxforge.passes.token_counts import kept_tokens
from onnxforge.runtimes import Decoder, Encoder, load

CUT = ("count-tokens", "prune-vocabulary{multiple=8}")
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
    return corpus_in(tmp_path_factory.mktemp("text"))


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
