"""Values that no one means: each is refused with the bounds, or does what it says without a warning."""

import threading
import time
import warnings

import numpy as np
import pytest
from tiny_artifacts import CONTEXT, write_decoder

from onnxforge.runtimes import CancelToken, ContextOverflow, GenerationOptions, RequestError, load
from onnxforge.runtimes.sampling import Sampler


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("threads", [0, -1, 100_000, True, "4", 1.5])
def test_a_number_of_threads_that_cannot_be_meant(tmp_path, threads):
    folder = write_decoder(tmp_path / "a")
    with pytest.raises(RequestError, match="whole number from 1 to"):
        load(folder, threads=threads)


@pytest.mark.parametrize("penalty", [1e-300, 1e-4, 1e4, 1e300])
def test_a_repetition_penalty_that_overflows_is_refused(decoder, penalty):
    with pytest.raises(RequestError, match=r"repetition_penalty is .* pass 0\.001 to 1000"):
        decoder.generate("a", max_new_tokens=2, repetition_penalty=penalty)


@pytest.mark.parametrize("penalty", [1e-3, 1e3])
def test_the_bounds_of_the_repetition_penalty_work(decoder, penalty):
    assert len(decoder.generate("the", max_new_tokens=8, repetition_penalty=penalty).token_ids) > 0


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-5])
def test_a_temperature_near_zero_is_greedy(decoder, temperature):
    greedy = decoder.generate("the", max_new_tokens=8, do_sample=False)
    drawn = decoder.generate("the", max_new_tokens=8, do_sample=True, temperature=temperature)
    assert drawn.token_ids == greedy.token_ids


def test_a_huge_temperature_is_a_fair_die():
    options = GenerationOptions(do_sample=True, temperature=1e300, top_k=0, seed=1)
    scores = np.array([0, 50, -50, 3], np.float32)
    counts = np.bincount([Sampler(options, [], i).choose(scores.copy()) for i in range(2000)], minlength=4)
    assert (abs(counts - 500) < 100).all()


@pytest.mark.parametrize("deadline", [float("inf"), 1e12, threading.TIMEOUT_MAX, 10**400])
def test_a_deadline_beyond_every_timer_is_none(decoder, deadline, monkeypatch):
    died = []
    monkeypatch.setattr(threading, "excepthook", died.append)
    assert decoder.generate("a", max_new_tokens=2, deadline=deadline).finish_reason in ("length", "stop")
    time.sleep(0.05)
    assert not died


@pytest.mark.parametrize("deadline", ["3", 0, -1, float("nan"), True, [1]])
def test_a_deadline_that_is_no_time(decoder, deadline):
    with pytest.raises(RequestError, match="pass seconds above 0"):
        decoder.generate("a", max_new_tokens=2, deadline=deadline)


def test_numpy_seconds_are_seconds(decoder):
    assert decoder.generate("a", max_new_tokens=2, deadline=np.float32(60)).text is not None


@pytest.mark.parametrize("cancel", [True, "now", CancelToken])
def test_only_a_token_cancels(decoder, cancel):
    with pytest.raises(RequestError, match="pass a CancelToken"):
        decoder.generate("a", max_new_tokens=2, cancel=cancel)


@pytest.mark.parametrize(
    "batch", [["a", 5], [[1, 2], 3], ["a", None], [[{"role": "user", "content": "x"}], {}]]
)
def test_a_batch_of_mixed_things_is_refused_by_row(decoder, batch):
    with pytest.raises(RequestError, match="Prompt 1 of the batch is a"):
        decoder.generate(batch, max_new_tokens=2)


@pytest.mark.parametrize(
    ("prompt", "options", "says", "never"),
    [
        (
            10,
            {"max_new_tokens": CONTEXT, "truncate": "left"},
            "Lower max_new_tokens to 182 or less",
            "truncate",
        ),
        (
            CONTEXT + 9,
            {"max_new_tokens": CONTEXT, "truncate": "left"},
            "max_new_tokens to 1 or less",
            "truncate",
        ),
        (CONTEXT - 4, {"max_new_tokens": 5}, "to 187 tokens, or lower max_new_tokens to 4, or drop", "fit"),
        (CONTEXT + 4, {"max_new_tokens": 5}, "to 187 tokens, or drop the oldest", "lower"),
        (CONTEXT, {}, "run --truncate", "lower"),
    ],
)
def test_advice_on_the_context_can_be_followed(decoder, prompt, options, says, never):
    with pytest.raises(ContextOverflow) as caught:
        decoder.generate([1] * prompt, **options)
    assert says in str(caught.value)
    assert never not in str(caught.value).split(". ", 1)[1]
