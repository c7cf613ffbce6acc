from pathlib import Path

from onnxforge.compiler.headline import headline
from onnxforge.compiler.request import CompileResult

DECODER = {
    "proof": True,
    "nodes_before": 1776,
    "nodes_after": 379,
    "size_mb": 153.973,
    "size_ratio": 0.28583,
    "perplexity": 14.0705,
    "perplexity_ratio": 1.00741,
    "top1_agreement": 0.96453,
    "mean_kl": 0.00467,
    "prefill_speed_ratio": 1.1377,
    "decode_speed_ratio": 2.2309,
    "first_token_ms": 647.085,
    "roofline_percent": 34.67,
    "peak_rss_mb": 374.3,
    "load_seconds": 0.4572,
}


def result(summary, missed=()):
    return CompileResult(
        output=Path("build/m"),
        task="text-generation-with-past",
        target="cpu-int8",
        passes=(),
        content_digest="20596b300d6c08eb",
        size=155_800_000,
        seconds=71.66,
        summary=summary,
        missed=missed,
    )


def test_a_proven_decoder():
    assert headline(result(DECODER)).splitlines() == [
        "build/m: text-generation-with-past for cpu-int8, 155.8 MB in 71.7 s, content 20596b300d6c",
        "  graph     1776 -> 379 nodes, 154.0 MB of graph and weights (0.29x the source's)",
        "  quality   perplexity 14.07 (1.0074x the source's), top-1 agreement 96.5%, mean KL 0.0047",
        "  speed     prefill 1.14x the baseline, decode 2.23x the baseline, first token after 647 ms, "
        "35% of the memory bound",
        "  memory    peak 374 MB when it runs, loads in 0.46 s",
        "  report    build/m/report/index.md",
    ]


def test_an_encoder_has_cosines():
    summary = {k: v for k, v in DECODER.items() if k.startswith(("proof", "nodes", "size"))}
    summary |= {"cosine": 0.9994, "mean_cosine": 0.9998, "encode_speed_ratio": 1.5, "label_agreement": 0.98}
    text = headline(result(summary))
    assert "cosine to the source at least 0.999400, mean 0.999800, labels agree 98.0%" in text
    assert "encode 1.50x the baseline" in text
    assert "memory" not in text


def test_slower_and_missed_are_said():
    text = headline(result(DECODER | {"decode_speed_ratio": 0.9}, missed=("promised a, measured b",)))
    assert "  slower    decode on this machine" in text
    assert "  missed    promised a, measured b" in text


def test_an_unproven_artifact_says_so():
    assert "not proven" in headline(result({"proof": False, "content_digest": "x"}))


def test_an_artifact_that_its_provider_has_not_run():
    where = {"provider": "CUDAExecutionProvider", "verified_on": "CPUExecutionProvider"}
    assert (
        "  verified  not on CUDAExecutionProvider, which is not here: quality was measured on "
        "CPUExecutionProvider, speed was not"
    ) in headline(result(DECODER | where)).splitlines()
    same = {"provider": "CPUExecutionProvider", "verified_on": "CPUExecutionProvider"}
    assert "verified" not in headline(result(DECODER | same))
