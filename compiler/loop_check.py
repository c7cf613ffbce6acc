"""Does the graph that generates in one run say what step-by-step decoding of the artifact says?"""

from pathlib import Path

import numpy as np

from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.compiler.targets import CPU
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes import Decoder
from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.session import open_session

_DRAFTS = 4


def has_loop(folder: Path) -> bool:
    """Whether the artifact has such a graph."""
    return (folder / AddSpeculativeLoop.file).is_file()


def tie_on(provider: str) -> float:
    """Two logits this near, as a share of the largest, may change places between two runs of one model.

    On the CPU even runs agree bit for bit. Kernels of other providers round as the shapes of a run fall out:
    float16 keeps 11 bits, and a few dozen layers add up.
    """
    return 0.0 if provider == CPU else 0.01


def reference(model: Decoder, prompt: tuple[int, ...], new_tokens: int, tie: float = 0.0) -> list[int]:
    """``prompt`` and the greedy tokens behind it, an even number of rows a run.

    They end before a choice between two logits that differ by less than ``tie`` of the largest: what is
    said from there on is no fault.
    """
    state = model.new_state(rows=1, capacity=len(prompt) + new_tokens + 1, min_rows=2)
    tokens = list(prompt)
    logits = state.prompt([np.array(prompt, np.int64)])[0]
    for _ in range(new_tokens):
        second, first = np.partition(logits, -2)[-2:]
        if first - second < tie * np.abs(logits).max():
            break
        tokens.append(int(logits.argmax()))
        logits = state.step(np.array([[tokens[-1]]], np.int64))[0, 0]
    return tokens


def check_loop(folder: Path, manifest: Manifest, provider: str, wanted: list[int], new_tokens: int) -> None:
    """Run the graph for the last ``new_tokens`` of ``wanted``.

    Raises:
        SelfCheckFailed: it says something else.
    """
    session = open_session(folder / AddSpeculativeLoop.file, provider, manifest.session, None)
    feeds = {
        "input_ids": np.array([wanted[: len(wanted) - new_tokens]], np.int64),
        "max_new_tokens": np.array(new_tokens, np.int64),
        "eos_token_id": np.empty(0, np.int64),
        "max_draft_tokens": np.array(_DRAFTS, np.int64),
    }
    said = session.run(["sequences"], feeds)[0][0].tolist()
    if said != wanted:
        raise SelfCheckFailed(
            f"{AddSpeculativeLoop.file} says {said} where step-by-step decoding says {wanted}. "
            "Compile with `--without add-speculative-loop`, and report this."
        )
