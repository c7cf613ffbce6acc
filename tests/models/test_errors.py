"""A list of problems reads as sentences, each with one end."""

import pytest

from onnxforge.models.errors import SourceError


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        (["no config.json"], "M: no config.json. Fetch it."),
        (["x.json is cut short: fetch it again."], "M: x.json is cut short: fetch it again. Fetch it."),
        (["one.", "two"], "M: 2 problems: (1) one; (2) two. Fetch it."),
        (["one", "and more..."], "M: 2 problems: (1) one; (2) and more... Fetch it."),
    ],
)
def test_no_sentence_ends_twice(problems: list[str], told: str):
    assert str(SourceError.listing("M", problems, "Fetch it.")) == told
