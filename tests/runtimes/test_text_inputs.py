"""What may be passed as text: anything that yields strings, and nothing that UTF-8 cannot hold."""

import numpy as np
import pytest
from tiny_artifacts import write_encoder

from onnxforge.runtimes import RequestError, load

TEXTS = ["the hand", "a", "over and over"]


def test_texts_may_come_from_anything_that_yields_them(tmp_path):
    with load(write_encoder(tmp_path / "a")) as model:
        listed = model.encode(TEXTS)
        for texts in ((text for text in TEXTS), iter(TEXTS), tuple(TEXTS), np.array(TEXTS)):
            np.testing.assert_array_equal(model.encode(texts), listed)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (None, "not NoneType"),
        (5, "not int"),
        (b"bytes", "not bytes"),
        (["a", None], "item 1 is a NoneType"),
        (["a", "b\ud800c"], "U\\+D800 at character 1"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(tmp_path, texts, says):
    with load(write_encoder(tmp_path / "a")) as model, pytest.raises(RequestError, match=says):
        model.encode(texts)


@pytest.mark.parametrize(
    ("text", "says"), [("a\ud800b", r"U\+D800 at character 1"), ("ab\udcff", "byte 0xFF at character 2")]
)
def test_text_that_utf8_cannot_hold_is_refused(decoder, text, says):
    for prompt in (text, [text], [{"role": "user", "content": text}]):
        with pytest.raises(RequestError, match="at character"):
            decoder.generate(prompt, max_new_tokens=1)
    with pytest.raises(RequestError, match=says):
        decoder.generate(text, max_new_tokens=1)
