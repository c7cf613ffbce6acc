"""One session, many threads: every answer is the answer it would have been alone."""

import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_artifacts import PLAIN, SHARED

from onnxforge.runtimes import CancelToken

PROMPTS = ["the hand", "a", "over and over", "日本語", "in the end", "and", "x y z", "another one"]
THREADS, ROUNDS = 16, 6


def _request(model, number):
    prompt, kind = PROMPTS[number % len(PROMPTS)], number % 4
    options = {"max_new_tokens": 20 + number % 5, "seed": number, "do_sample": number % 3 == 0}
    if kind == 0:
        return "".join(model.stream(prompt, **options))
    if kind == 1:
        return [r.token_ids for r in model.generate([prompt, PROMPTS[0]], **options)]
    if kind == 2:
        return model.generate(prompt, deadline=60, cancel=CancelToken(), stop=["q"], **options).text
    return model.generate(prompt, **options).token_ids


@pytest.mark.parametrize("form", [SHARED, PLAIN], ids=str)
def test_threads_get_the_answers_of_a_serial_run(decoders_by_form, form):
    model = decoders_by_form[form]
    numbers = range(THREADS * ROUNDS)
    serial = [_request(model, number) for number in numbers]
    before = threading.active_count()
    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(lambda number: _request(model, number), numbers)) == serial
    gc.collect()
    assert threading.active_count() <= before + 1


def test_cancelling_some_requests_leaves_the_others_right(decoder):
    expected = decoder.generate("the hand", max_new_tokens=120, eos_token_id=[]).token_ids

    def one(number):
        cancel = CancelToken()
        stream = decoder.stream("the hand", max_new_tokens=120, eos_token_id=[], cancel=cancel)
        for at, _ in enumerate(stream):
            if number % 2 and at == number:
                cancel.cancel()
        return stream.result

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(32)))
    for number, result in enumerate(results):
        assert result.finish_reason == ("cancelled" if number % 2 else "length")
        assert result.token_ids == expected[: len(result.token_ids)]
    assert all(len(result.token_ids) == 120 for result in results[::2])
