"""A tokenizer that does not fit is refused before anything is computed."""

import pytest
from tokenizers import Tokenizer, models

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.tokenizer_check import check_tokenizer
from onnxforge.models.source import Source, SourceKind


def source(tokenizer: bytes | None, vocabulary: object = 10) -> Source:
    sidecars = {} if tokenizer is None else {"tokenizer.json": tokenizer}
    return Source(
        kind=SourceKind.FOLDER,
        ref="here/model",
        config={"vocab_size": vocabulary},
        weights={},
        sidecars=sidecars,
        digests={},
    )


def words(count: int, added: int = 0) -> bytes:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(count)}, unk_token="w0"))
    tokenizer.add_special_tokens([f"<s{i}>" for i in range(added)])
    return tokenizer.to_str().encode()


@pytest.mark.parametrize("fits", [words(10), words(8, 2), words(3)])
def test_a_fitting_one_passes(fits):
    check_tokenizer(source(fits))


def test_a_model_that_names_no_size_is_not_judged():
    check_tokenizer(source(words(10), None))


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (None, r"here/model has no tokenizer\.json.*save_pretrained"),
        (b'{"a": 1}', "cannot be read"),
        (b"\xff", "cannot be read"),
        (words(12), r"2 tokens with ids that the vocabulary of 10 does not hold, up to 11 \('w11'\)"),
        (words(10, 1), r"1 tokens .* up to 10 \('<s0>'\)"),
    ],
)
def test_the_others_are_refused(tokenizer, says):
    with pytest.raises(RequestRefused, match=says):
        check_tokenizer(source(tokenizer))
