import sys
from dataclasses import replace

import pytest

from onnxforge.compiler.speed import MeasurementFailed, decoder_tests, first_token_test, measure
from onnxforge.compiler.speed_types import SpeedTest, Timing
from onnxforge.runtimes.artifact import read_manifest, write_manifest


def test_names_are_those_of_llama_bench():
    assert SpeedTest(prompt=512).name == "pp512"
    assert SpeedTest(generate=128).name == "tg128"
    assert SpeedTest(generate=128, depth=512).name == "tg128 @ d512"
    assert SpeedTest(prompt=8, generate=4).name == "pp8+tg4"
    assert SpeedTest(sentences=64).name == "encode64"


def test_rates_are_work_over_seconds():
    timing = Timing(SpeedTest(prompt=100), (1.0, 2.0, 4.0))
    assert timing.rates == (100, 50, 25)
    assert timing.median == 50
    assert timing.mean == pytest.approx(175 / 3)
    assert timing.deviation == pytest.approx(38.188, rel=1e-4)
    assert Timing(SpeedTest(prompt=100), (1.0,)).deviation == 0


def test_tests_are_cut_to_the_context():
    tests = decoder_tests((512, 64), 128, 512, context=8192)
    assert [t.name for t in tests] == ["pp512", "pp64", "tg128", "tg128 @ d512"]
    assert first_token_test(tests) == SpeedTest(prompt=512)
    small = decoder_tests((512, 64), 128, 512, context=32)
    assert [t.name for t in small] == ["pp31", "tg16", "tg16 @ d16"]
    assert all(t.depth + t.prompt + t.generate <= 32 for t in small)


def test_a_context_shorter_than_what_wakes_a_process_is_measured(make_artifact):
    folder = make_artifact("short")
    write_manifest(folder, replace(read_manifest(folder), context_length=12))
    report = measure({"": folder}, decoder_tests((16,), 4, 8, context=12), rounds=1, threads=1)[""]
    assert [t.test.name for t in report.timings] == ["pp11", "tg4", "tg4 @ d8"]


def test_two_artifacts_are_measured_in_processes_of_their_own(make_artifact):
    folders = {"a": make_artifact("a"), "b": make_artifact("b", 0.1)}
    tests = decoder_tests((16,), 4, 8, context=96)
    reports = measure(folders, tests, rounds=2, first_token=SpeedTest(prompt=16), threads=1)
    assert list(reports) == ["a", "b"]
    for report in reports.values():
        assert [t.test for t in report.timings] == list(tests)
        assert all(len(t.seconds) == 2 and min(t.seconds) > 0 for t in report.timings)
        assert report.first_token is not None
        assert len(report.first_token.seconds) == 2
        assert 10e6 < report.peak_rss < 1e9
        assert report.threads == 1
        assert report.load_seconds > 0


def test_patience_ends_the_rounds_but_two_are_always_made(make_artifact):
    folders, tests = {"a": make_artifact("a")}, (SpeedTest(prompt=8),)
    hurried = measure(folders, tests, rounds=9, threads=1, patience=0)["a"]
    assert len(hurried.timings[0].seconds) == 2


@pytest.mark.parametrize("kind", ["encoder", "classifier"])
def test_encoders_are_timed_in_sentences(make_artifact, kind):
    folder = make_artifact("a", kind=kind)
    tests = (SpeedTest(sentences=2),)
    report = measure({"a": folder}, tests, rounds=1, sentences=["the value", "a name"], threads=1)["a"]
    assert report.timings[0].rates[0] > 0
    assert report.first_token is None


def test_a_process_that_dies_says_why(tmp_path):
    with pytest.raises(MeasurementFailed, match=r"artifact\.json"):
        measure({"gone": tmp_path}, (SpeedTest(prompt=4),), rounds=1)


def test_peers_are_measured_in_the_same_rounds(make_artifact):
    script = """
import json
print(json.dumps({"load_seconds": 0.5}), flush=True)
while not (request := json.loads(input())).get("finish"):
    print(json.dumps({"seconds": request["prompt"] / 100}), flush=True)
print(json.dumps({"peak_rss": 12345678}), flush=True)
"""
    peers = {"other": [sys.executable, "-c", script]}
    reports = measure({"a": make_artifact("a")}, (SpeedTest(prompt=8),), rounds=2, threads=1, peers=peers)
    assert list(reports) == ["a", "other"]
    assert reports["other"].timings[0].rates == (100, 100)
    assert (reports["other"].load_seconds, reports["other"].peak_rss) == (0.5, 12345678)
