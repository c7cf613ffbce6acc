"""The encoder sections of `peers.py`: sentences a second, and how far embeddings are from full precision."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from peers_builds import Builds
from peers_rules import Samples
from peers_state import State
from peers_systems import HERE, size_of
from speculation import Child
from tokenizers import Tokenizer

from onnxforge.compiler.eval_text import sentences
from onnxforge.compiler.proof_session import threads
from onnxforge.runtimes.artifact import read_manifest

SHAPES = ((1, 32), (1, 128), (16, 32), (16, 64), (16, 128))
"""Batch and tokens of every text, special ones included."""
BATCHES = 4
REFERENCE = "optimum-onnx fp32"


@dataclass(frozen=True)
class EncoderSystem:
    """One engine with one form of the encoder's weights."""

    name: str
    command: tuple[str, ...]
    size: int
    ours: bool = False


def key(shape: tuple[int, int]) -> str:
    """A shape's name in the results: ``16 x 64``."""
    return f"{shape[0]} x {shape[1]}"


def encoder_systems(artifacts: Sequence[Path], builds: Builds, only: str) -> tuple[EncoderSystem, ...]:
    """Ours first, the reference last."""
    longest = read_manifest(artifacts[0]).context_length
    own = (sys.executable, str(HERE / "peers_ours_encoder_child.py"))
    found = [
        EncoderSystem(f"onnxforge {f.name}", (*own, str(f)), size_of(f / "onnx", "*"), ours=True)
        for f in artifacts
    ]
    python, script = builds.environments.python("optimum"), str(HERE / "peers_encoder_child.py")
    tail = (str(builds.source() / "tokenizer.json"), str(threads()), str(longest))
    forms = {
        "optimum-onnx int8": ("onnxruntime", builds.optimum_encoder_int8),
        "OpenVINO int8 weights": ("openvino", lambda: builds.openvino_encoder("int8")),
        "OpenVINO int8": ("openvino", lambda: builds.openvino_encoder_int8(longest)),
        REFERENCE: ("onnxruntime", builds.optimum_encoder),
    }
    for name, (runtime, build) in forms.items():
        if name == REFERENCE or any(fnmatch(name, pattern) for pattern in only.split(",")):
            path = build()
            size = size_of(path.parent, f"{path.stem}.*")
            found.append(EncoderSystem(name, (python, script, runtime, str(path), *tail), size))
    return tuple(found)


def encoder_session(
    systems: Sequence[EncoderSystem],
    tokenizer: Tokenizer,
    rounds: int,
    number: int,
    shapes: Sequence = SHAPES,
) -> dict:
    """Every system in a fresh process; rounds in alternating order."""
    words = one_token_words(tokenizer)
    turned = [*systems[number % len(systems) :], *systems[: number % len(systems)]]
    found: dict[str, dict] = {s.name: {"rates": {key(shape): [] for shape in shapes}} for s in systems}
    with ExitStack() as stack:
        children = {s.name: stack.enter_context(Child(s.name, s.command)) for s in turned}
        for child in children.values():
            child.read()  # loaded
        for turn in range(-1, rounds):  # the first one warms up
            for shape in shapes:
                batch, length = shape
                texts = texts_of(tokenizer, words, BATCHES * batch, length, seed=turn + 1)
                request = {"texts": texts, "batch": batch, "embeddings": False}
                for name in children if turn % 2 else [*children][::-1]:
                    seconds = children[name].ask(request)["seconds"]
                    if turn >= 0:
                        found[name]["rates"][key(shape)].append(len(texts) / seconds)
        for name, child in children.items():
            found[name]["peak_rss"] = child.ask({"finish": True})["peak_rss"]
    return {"systems": found}


def one_token_words(tokenizer: Tokenizer) -> list[str]:
    """Whole words of the vocabulary that are one token when they stand in a text."""
    plain = sorted(
        word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2
    )
    counts = [len(row.ids) for row in tokenizer.encode_batch(plain, add_special_tokens=False)]
    return [word for word, count in zip(plain, counts, strict=True) if count == 1]


def texts_of(tokenizer: Tokenizer, words: Sequence[str], count: int, length: int, seed: int) -> list[str]:
    """``count`` different texts of exactly ``length`` tokens, special ones included.

    Raises:
        SystemExit: the words do not stay one token each in this tokenizer.
    """
    special = len(tokenizer.encode("").ids)
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(words, length - special)) for _ in range(count)]
    if any(len(row.ids) != length for row in tokenizer.encode_batch(texts)):
        raise SystemExit(f"no texts of {length} tokens can be made for this tokenizer: words merge in a text")
    return texts


def encoder_samples(sessions: Sequence[dict]) -> dict[str, dict[str, Samples]]:
    """By column (a shape, peak_rss), then by system; all sessions pooled."""
    gathered: dict[str, dict[str, list[float]]] = {}
    for session in sessions:
        for name, found in session["systems"].items():
            columns = {**found["rates"], "peak_rss": [found["peak_rss"]]}
            for column, values in columns.items():
                gathered.setdefault(column, {}).setdefault(name, []).extend(values)
    return {c: {n: Samples(tuple(v)) for n, v in systems.items() if v} for c, systems in gathered.items()}


def compare_embeddings(systems: Sequence[EncoderSystem], count: int, state: State) -> None:
    """Cosine of every system to the reference, over ``count`` sentences of the held-out text."""
    texts = sentences(count)
    reference = None
    for system in reversed(systems):  # the reference is last
        if reference is not None and system.name in state.scores("encoder_quality"):
            continue
        with Child(system.name, system.command) as child:
            child.read()
            answer = child.ask({"texts": texts, "batch": 16, "embeddings": True})
        embeddings = np.asarray(answer["embeddings"])
        reference = embeddings if reference is None else reference
        cosines = (embeddings * reference).sum(axis=1)
        found = {"mean": float(cosines.mean()), "least": float(cosines.min()), "sentences": len(texts)}
        state.score("encoder_quality", system.name, found)
