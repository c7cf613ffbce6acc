"""Does the tokenizer that travels with a model fit it? Asked before anything is computed."""

from tokenizers import Tokenizer

from onnxforge.compiler.errors import RequestRefused
from onnxforge.models.source import Source

_FILE = "tokenizer.json"


def check_tokenizer(source: Source) -> Source:
    """Give ``source`` back if its artifact can read text, and reads it as ids that the model has.

    Raises:
        RequestRefused: ``tokenizer.json`` is absent, unreadable, or has ids beyond the vocabulary.
    """
    stored = source.sidecars.get(_FILE)
    if stored is None:
        raise RequestRefused(
            f"{source.ref} has no {_FILE}, and an artifact without one cannot read text. Write it with "
            "transformers: `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)`, beside the weights."
        )
    try:
        tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    except Exception as error:  # tokenizers raises bare Exception
        raise RequestRefused(
            f"{source.ref}: {_FILE} cannot be read by the tokenizers library ({error}). "
            "Fetch it again, or write it anew with a current version of transformers."
        ) from error
    size, ids = source.config.get("vocab_size"), tokenizer.get_vocab(with_added_tokens=True)
    if not isinstance(size, int) or not ids:
        return source
    beyond = {token: number for token, number in ids.items() if number >= size}
    if beyond:
        token, number = max(beyond.items(), key=lambda item: item[1])
        raise RequestRefused(
            f"{source.ref}: {_FILE} and the model do not belong together. The tokenizer has {len(beyond)} "
            f"tokens with ids that the vocabulary of {size} does not hold, up to {number} ({token!r}). "
            "Put the right tokenizer beside the weights."
        )
    return source
