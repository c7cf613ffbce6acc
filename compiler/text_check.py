"""Does the graph with the tokenizer inside read and write text as the tokenizers library does?"""

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from tokenizers import Tokenizer

from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.compiler.text_corpus import HARD, fragments, texts
from onnxforge.compiler.text_rules_of import shown
from onnxforge.passes.add_text_io import AddTextIo
from onnxforge.passes.text_graph import detokenize
from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.session import open_session

PROMPT = "A"
_TEXTS, _FRAGMENTS, _SEQUENCES = 500, 500, 500
_LOW_IDS, _LONGEST = 300, 24
_SPECIALS, _SHOWN = 8, 8
_OPSET = 23


def has_text_graph(folder: Path) -> bool:
    """Whether the artifact has such a graph."""
    return (folder / AddTextIo.file).is_file()


def check_text(
    folder: Path, manifest: Manifest, provider: str, wanted: Sequence[int], new_tokens: int
) -> None:
    """Compare ids on about 1,050 texts and decoded ids on 500 sequences, and one answer to :data:`PROMPT`.

    ``wanted`` is the prompt and its ``new_tokens`` greedy tokens, as step-by-step decoding says them.

    Raises:
        SelfCheckFailed: something differs; the first text, and both readings of it.
    """
    stored = (folder / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_str(stored.decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    session = open_session(folder / AddTextIo.file, provider, manifest.session, None)
    for text in corpus(tokenizer):
        said, _ = _run(session, text, 0)
        ids = tokenizer.encode(text).ids
        if said != ids:
            same = (own == its for own, its in zip(said, ids, strict=False))
            at = sum(1 for _ in takewhile(bool, same))
            raise SelfCheckFailed(
                f"{AddTextIo.file} reads {text!r} as {said[at : at + _SHOWN]} from token {at} on, and the "
                f"tokenizer as {ids[at : at + _SHOWN]}. Compile without --text-io, and report this."
            )
    said, answer = _run(session, PROMPT, new_tokens)
    decoded = tokenizer.decode(list(wanted[-new_tokens:]), skip_special_tokens=True) if new_tokens else ""
    if (said, answer) != (list(wanted), decoded):
        raise SelfCheckFailed(
            f"{AddTextIo.file} answers {PROMPT!r} with {answer!r} {said}, and step-by-step decoding with "
            f"{decoded!r} {list(wanted)}. Compile without --text-io, and report this."
        )
    check_decoding(decoder(shown(stored)), tokenizer)


def corpus(tokenizer: Tokenizer) -> Iterator[str]:
    """Texts that tell tokenizers apart, with this one's special tokens among them."""
    added = tokenizer.get_added_tokens_decoder()
    every = [added[number].content for number in sorted(added)]
    specials = every[:_SPECIALS]
    yield from HARD
    yield from (f"a {special}{special} \n{special[:-1]}" for special in every)
    yield from texts(_TEXTS, specials)
    yield from fragments(_FRAGMENTS, specials)


def decoder(pieces: Sequence[bytes]) -> Callable[[Sequence[int]], str]:
    """The graph's way from ids to text, on its own."""
    ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
    graph = ir.Graph([ids], [], nodes=[], name="decoder", opset_imports={"": _OPSET})
    text = detokenize(graph, ids, pieces, _OPSET)
    text.shape, text.type = ir.Shape([1]), ir.TensorType(ir.DataType.STRING)
    graph.outputs.append(text)
    session = ort.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return lambda numbers: str(session.run(None, {"ids": np.array(numbers, np.int64)})[0][0])


def check_decoding(decode: Callable[[Sequence[int]], str], tokenizer: Tokenizer) -> None:
    """Compare random ids, of all and of the lowest: single bytes in most vocabularies, UTF-8 cut short.

    Raises:
        SelfCheckFailed: the first that differ, and both texts.
    """
    draw = np.random.default_rng(0)
    size = tokenizer.get_vocab_size()
    for turn in range(_SEQUENCES):
        below = size if turn % 2 else min(size, _LOW_IDS)
        ids = draw.integers(0, below, draw.integers(0, _LONGEST)).tolist()
        said, wanted = decode(ids), tokenizer.decode(ids, skip_special_tokens=True)
        if said != wanted:
            raise SelfCheckFailed(
                f"{AddTextIo.file} writes the ids {ids} as {said!r}, and the tokenizer as {wanted!r}. "
                "Compile without --text-io, and report this."
            )


def _run(session: ort.InferenceSession, text: str, new_tokens: int) -> tuple[list[int], str]:
    feeds = {
        "prompt": np.array([text], object),
        "max_new_tokens": np.array(new_tokens, np.int64),
        "eos_token_id": np.empty(0, np.int64),
        "max_draft_tokens": np.array(0, np.int64),
    }
    answer, sequences = session.run(["text", "sequences"], feeds)
    return sequences[0].tolist(), str(answer[0])
