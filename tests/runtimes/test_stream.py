"""Streaming, stop strings, cancelling, deadlines."""

import threading
import time

import pytest
from tiny_artifacts import FORMS, SHARED, Form, write_decoder

from onnxforge.runtimes import CancelToken, RequestError, load

PROMPTS = ["the hand", "a", "日本語 and 🙂", [5, 6, 7], [{"role": "user", "content": "hi"}]]
NO_EOS = {"eos_token_id": []}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True, "seed": 3, "temperature": 1.5}, {"stop": ["z", "th"]}]
)
def test_the_pieces_of_a_stream_are_the_generated_text(decoders_by_form, form, options):
    model = decoders_by_form[form]
    for prompt in PROMPTS:
        stream = model.stream(prompt, max_new_tokens=60, **options)
        text = "".join(stream)
        expected = model.generate(prompt, max_new_tokens=60, **options)
        assert text == expected.text == stream.result.text
        assert stream.result.token_ids == expected.token_ids
        assert stream.result.finish_reason == expected.finish_reason


def test_text_comes_while_the_answer_is_written(decoder):
    with decoder.stream("the hand", max_new_tokens=100, **NO_EOS) as stream:
        pieces = [next(stream) for _ in range(3)]
    assert all(pieces)
    full = decoder.generate("the hand", max_new_tokens=100, **NO_EOS).text
    assert full.startswith("".join(pieces))


@pytest.mark.parametrize("form", [SHARED, FORMS[2]], ids=str)
def test_a_stop_string_ends_the_text_before_it(decoders_by_form, form):
    model = decoders_by_form[form]
    free = model.generate("the hand", max_new_tokens=60, **NO_EOS)
    stops = [free.text[at : at + 3] for at in range(2, 40) if "\ufffd" not in free.text[at : at + 3]]
    for stop in stops[:4]:
        result = model.generate("the hand", max_new_tokens=60, stop=stop, **NO_EOS)
        assert result.finish_reason == "stop"
        assert result.text == free.text[: free.text.index(stop)]
        assert result.token_ids == free.token_ids[: len(result.token_ids)]
        assert stop in model.tokenizer.decode(result.token_ids)
        assert stop not in model.tokenizer.decode(result.token_ids[:-1])


def test_text_held_for_a_stop_string_that_does_not_come_is_given_at_the_end(decoder):
    free = decoder.generate("the hand", max_new_tokens=12, **NO_EOS)
    result = decoder.generate("the hand", max_new_tokens=12, stop=[free.text[-2:] + "never"], **NO_EOS)
    assert (result.text, result.finish_reason) == (free.text, "length")


def test_a_batch_with_stop_strings_equals_its_singles(decoder):
    prompts = ["the hand", "a", "over"]
    stop = decoder.generate("a", max_new_tokens=30, **NO_EOS).text[8:10]
    batch = decoder.generate(prompts, max_new_tokens=30, stop=[stop, "x"], **NO_EOS)
    singles = [decoder.generate(p, max_new_tokens=30, stop=[stop, "x"], **NO_EOS) for p in prompts]
    assert [(r.text, r.token_ids, r.finish_reason) for r in batch] == [
        (r.text, r.token_ids, r.finish_reason) for r in singles
    ]


def test_the_result_of_a_stream_needs_its_end(decoder):
    stream = decoder.stream("the", max_new_tokens=20, **NO_EOS)
    next(stream)
    with pytest.raises(RequestError, match="has not ended"):
        _ = stream.result
    stream.close()
    stream.close()
    assert list(stream) == []


def test_a_stream_checks_its_request_before_the_first_piece(decoder):
    with pytest.raises(RequestError, match="top_k"):
        decoder.stream("the", top_k=-1)


def test_cancelling_at_any_token_leaves_the_next_request_right(decoder):
    expected = decoder.generate("the hand", max_new_tokens=30, **NO_EOS)
    for after in range(1, 30, 3):
        cancel = CancelToken()
        stream = decoder.stream("the hand", max_new_tokens=150, cancel=cancel, **NO_EOS)
        for _ in range(after):
            next(stream, None)
        cancel.cancel()
        rest = list(stream)
        assert stream.result.finish_reason == "cancelled"
        assert len(rest) <= 1  # the bytes of a character that did not come whole
        assert len(stream.result.token_ids) < 150
        assert decoder.generate("the hand", max_new_tokens=30, **NO_EOS).token_ids == expected.token_ids


def test_a_cancelled_token_ends_every_request_it_is_given_to(decoder):
    cancel = CancelToken()
    cancel.cancel()
    assert cancel.cancelled
    result = decoder.generate("the", max_new_tokens=10, cancel=cancel)
    assert (result.finish_reason, result.token_ids, result.text) == ("cancelled", (), "")
    batch = decoder.generate(["the", "a"], max_new_tokens=10, cancel=cancel)
    assert [r.finish_reason for r in batch] == ["cancelled"] * 2


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """Each run would take about a minute."""
    folder = write_decoder(tmp_path_factory.mktemp("slow") / "a", Form(slow=True))
    with load(folder, threads=1) as model:
        yield model


def _seconds(work):
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def test_a_deadline_interrupts_a_prompt_being_read(slow):
    result, seconds = _seconds(lambda: slow.generate("the hand", max_new_tokens=5, deadline=0.2))
    assert result.finish_reason == "deadline"
    assert 0.19 < seconds < 1.5
    assert result.stats.new_tokens == 0


def test_a_cancel_from_another_thread_interrupts_a_run(slow):
    cancel = CancelToken()
    timer = threading.Timer(0.2, cancel.cancel)
    timer.start()
    result, seconds = _seconds(
        lambda: slow.generate("the hand", max_new_tokens=5, cancel=cancel, deadline=30)
    )
    timer.join()
    assert result.finish_reason == "cancelled"
    assert seconds < 1.5


def test_closing_a_stream_from_another_thread_interrupts_its_run(slow):
    stream = slow.stream("the hand", max_new_tokens=5)
    timer = threading.Timer(0.2, stream.close)
    timer.start()
    pieces, seconds = _seconds(lambda: list(stream))
    timer.join()
    assert pieces == []
    assert stream.result.finish_reason == "cancelled"
    assert seconds < 1.5


def test_a_deadline_between_tokens_keeps_what_was_written(decoder):
    stream = decoder.stream("the hand", max_new_tokens=150, deadline=0.15, **NO_EOS)
    first = next(stream)
    time.sleep(0.2)
    text = first + "".join(stream)
    assert stream.result.finish_reason == "deadline"
    assert 0 < len(stream.result.token_ids) < 150
    full = decoder.generate("the hand", max_new_tokens=150, **NO_EOS)
    assert full.token_ids[: len(stream.result.token_ids)] == stream.result.token_ids
    assert stream.result.text == text


def test_a_deadline_that_is_met_changes_nothing(decoder):
    expected = decoder.generate("the hand", max_new_tokens=20)
    threads = threading.active_count()
    result = decoder.generate("the hand", max_new_tokens=20, deadline=60)
    assert (result.token_ids, result.finish_reason) == (expected.token_ids, expected.finish_reason)
    for _ in range(100):
        if threading.active_count() <= threads:
            break
        time.sleep(0.01)
    assert threading.active_count() <= threads
