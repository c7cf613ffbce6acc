import json
from pathlib import Path

import pytest

from onnxforge.compiler.eval_text import EvaluationError
from onnxforge.compiler.observe import GraphStats, Ledger, PassRecord
from onnxforge.compiler.proof import prove
from onnxforge.compiler.proof_types import EXPORT, METRICS, ProofOptions
from onnxforge.compiler.targets import Bound, BudgetLine
from onnxforge.models.source import Source, SourceKind
from onnxforge.passes.notes import Note, NoteKind

SOURCE = Source("tiny", SourceKind.FOLDER, {"vocab_size": 200})
LEDGER = Ledger(
    (
        PassRecord(
            text="fuse-norm{epsilon=1e-5}",
            seconds=0.1,
            modified=True,
            before=GraphStats(40, 9000, {"MatMul": 9, "Add": 31}),
            after=GraphStats(30, 5000, {"MatMul": 9, "Add": 21}),
            matches=(Note(NoteKind.MATCH, "RMSNormalization", "/layers.0/norm"),),
            near_misses=(
                Note(NoteKind.NEAR_MISS, "RMSNormalization", "/norm", "the epsilon is not a constant"),
            ),
        ),
    )
)


class References:
    """Builds tiny references, and remembers what it was asked for."""

    def __init__(self, make, kind):
        self.make, self.kind, self.asked = make, kind, []

    def __call__(self, name: str, folder: Path) -> None:
        self.asked.append(name)
        self.make(name, kind=self.kind, into=folder)


def options(make, *budget, kind="decoder", target="cpu-int8", **other):
    references = References(make, kind)
    settings = {
        "windows": 2,
        "window": 32,
        "sentences": 9,
        "rounds": 1,
        "speed": False,
        "command": ("compile", "x y"),
    }
    return ProofOptions(target, references, budget, **(settings | other)), references


def read(folder: Path) -> dict:
    return json.loads((folder / "report" / "report.json").read_text())


def test_a_decoder_is_proven_with_its_clocks(make_artifact):
    staging = make_artifact("staging", 0.01)
    asked, references = options(
        make_artifact,
        BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.5),
        BudgetLine("cosine", Bound.AT_LEAST, 0.99),
        prompt_tokens=(16, 8),
        decode_tokens=4,
        decode_depth=8,
        speed=True,
    )
    proof = prove(staging, SOURCE, None, asked, LEDGER)
    assert references.asked == [EXPORT, "cpu-fp32"]
    assert proof.missed == ()
    assert 0.5 < proof.summary["perplexity_ratio"] < 1.5
    assert proof.summary["perplexity_ratio"] != 1
    assert {
        "pp16",
        "pp8",
        "tg4",
        "tg4_d8",
        "decode_speed_ratio",
        "prefill_speed_ratio",
    } <= proof.summary.keys()
    assert {"first_token_ms", "peak_rss_mb", "roofline_percent", "size_ratio"} <= proof.summary.keys()
    json.dumps(proof.summary, allow_nan=False)
    found = sorted(p.name for p in (staging / "report").iterdir())
    assert found == ["index.md", "layers.png", "operators.png", "report.json", "size.png", "speed.png"]
    evidence = read(staging)["evidence"]
    assert evidence["verdicts"] == [
        {"line": "perplexity_ratio <= 1.5", "measured": proof.summary["perplexity_ratio"], "held": True}
    ]
    assert "cosine >= 0.99 does not apply" in evidence["notes"][0]
    assert [layer["layer"] for layer in evidence["layers"]] == [0, 1]
    assert evidence["ledger"]["records"][0]["near_misses"][0]["reason"] == "the epsilon is not a constant"
    page = (staging / "report" / "index.md").read_text()
    assert "`compile 'x y'`" in page
    assert "the epsilon is not a constant" in page
    assert "no BOS" in page
    assert "![" in page


def test_the_baseline_target_is_held_against_the_export_which_is_built_once(make_artifact):
    staging = make_artifact("staging")
    asked, references = options(
        make_artifact, target="cpu-fp32", speed=True, prompt_tokens=(8,), decode_tokens=2
    )
    proof = prove(staging, SOURCE, None, asked, Ledger())
    assert references.asked == [EXPORT]
    assert proof.summary["max_abs"] == 0
    assert proof.summary["top1_agreement"] == 1
    assert not (staging / "report" / "size.png").exists(), "no pass ran, so there is no waterfall"


@pytest.mark.parametrize(
    ("line", "held"),
    [
        (BudgetLine("max_abs", Bound.AT_MOST, 1e-9), False),
        (BudgetLine("top1_agreement", Bound.AT_LEAST, 0.2), True),
        (BudgetLine("mean_kl", Bound.AT_MOST, 0.0), False),
        (BudgetLine("perplexity", Bound.AT_MOST, 1e9), True),
        (BudgetLine("pleasantness", Bound.AT_MOST, 1.0), False),
    ],
)
def test_budget_lines_are_judged_by_the_numbers(make_artifact, line, held):
    staging = make_artifact("staging", 0.05)
    asked, _ = options(make_artifact, line)
    proof = prove(staging, SOURCE, None, asked, LEDGER)
    assert (proof.missed == ()) is held
    if not held:
        assert proof.missed[0].startswith(f"promised {line.text()}")
        assert "**missed**" in (staging / "report" / "index.md").read_text()


def test_an_encoder_is_proven_by_cosine(make_artifact):
    staging = make_artifact("staging", 0.01, kind="encoder")
    line = BudgetLine("cosine", Bound.AT_LEAST, 0.9)
    asked, references = options(make_artifact, line, kind="encoder", speed=True)
    proof = prove(staging, SOURCE, None, asked, LEDGER)
    assert references.asked == [EXPORT, "cpu-fp32"]
    assert proof.missed == ()
    assert 0.9 < proof.summary["cosine"] < proof.summary["mean_cosine"] < 1
    assert {"encode9", "encode_speed_ratio", "worst_layer_sqnr_db"} <= proof.summary.keys()
    assert "perplexity" not in proof.summary
    assert "label_agreement" not in proof.summary


def test_a_classifier_is_proven_by_labels_too(make_artifact):
    staging = make_artifact("staging", 0.001, kind="classifier")
    asked, _ = options(make_artifact, kind="classifier")
    assert prove(staging, SOURCE, None, asked, Ledger()).summary["label_agreement"] >= 8 / 9


def test_a_decoder_without_tokenizer_is_proven_over_random_ids(make_artifact):
    staging = make_artifact("staging", 0.01)
    (staging / "tokenizer.json").unlink()
    asked, _ = options(make_artifact)
    proof = prove(staging, SOURCE, None, asked, LEDGER)
    assert "random ids" in proof.summary["protocol"]


def test_a_tokenizer_of_another_model_is_refused(make_artifact):
    staging = make_artifact("staging")
    asked, _ = options(make_artifact)
    source = Source("tiny", SourceKind.FOLDER, {"vocab_size": 100})
    with pytest.raises(EvaluationError, match="belongs to another model"):
        prove(staging, source, None, asked, LEDGER)


def test_the_same_evidence_gives_the_same_bytes(make_artifact):
    pages = []
    for name in "ab":
        staging = make_artifact(name, 0.01)
        asked, _ = options(make_artifact)
        prove(staging, SOURCE, None, asked, LEDGER)
        pages.append({p.name: p.read_bytes() for p in (staging / "report").iterdir()})
    assert pages[0] == pages[1]


def test_every_metric_a_budget_may_name_is_explained():
    assert all(text and not text.endswith(".") for text in METRICS.values())
