"""The quality section of `peers.py`: every decoder scores the very same token ids."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers_state import State
from peers_systems import System
from speculation import Child

from onnxforge.compiler.eval_text import Window, cut, evaluation_text
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.spread import standard_error

WINDOW = 512


@dataclass(frozen=True)
class Quality:
    """Perplexity, and its ratio to the reference's with the standard error over windows."""

    perplexity: float
    ratio: float
    error: float


def windows_for(artifact: Path, limit: int) -> tuple[list[Window], str]:
    """The held-out text in windows of the artifact's tokenizer, and the protocol in words."""
    tokenizer = GraphSession(artifact).tokenizer()
    windows, protocol = cut(evaluation_text(), tokenizer, window=WINDOW, limit=limit)
    return windows, protocol.sentence()


def score_all(systems: Sequence[System], windows: Sequence[Window], state: State) -> None:
    """Score with every system that was not scored yet; kept after each."""
    for system in systems:
        if system.quality_of or system.name in state.scores("quality"):
            continue
        print(f"perplexity of {system.name}", file=sys.stderr, flush=True)
        with Child(system.name, system.commands["quality"]) as child:
            child.read()
            answers = [child.ask({"ids": w.ids[0].tolist(), "first": w.first}) for w in windows]
        found = {name: [answer[name] for answer in answers] for name in ("nll", "tokens")}
        if not all(math.isfinite(nll) for nll in found["nll"]):
            raise SystemExit(f"{system.name} answers NaN logits on the evaluation text")
        state.score("quality", system.name, found)


def qualities(scores: dict[str, dict], quality_of: dict[str, str], reference: str) -> dict[str, Quality]:
    """By system; one that is not scored itself has what the system of the same weights has."""
    if reference not in scores:
        return {}
    base = scores[reference]
    found = {}
    for name in {**scores, **quality_of}:
        held = scores.get(quality_of.get(name) or name)
        if held is None or held["tokens"] != base["tokens"]:
            continue  # other windows: never compared
        counts = np.asarray(held["tokens"], float)
        means, theirs = np.asarray(held["nll"]) / counts, np.asarray(base["nll"]) / counts
        ratio = math.exp(float(np.average(means - theirs, weights=counts)))
        perplexity = math.exp(float(np.average(means, weights=counts)))
        found[name] = Quality(perplexity, ratio, ratio * standard_error(means - theirs))
    return found
