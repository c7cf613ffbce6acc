"""Running `onnx/model_spec.onnx` with nothing but onnxruntime, for the speculation benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes.artifact import read_manifest
from onnxforge.runtimes.session import open_session, provider_name

LOOP = AddSpeculativeLoop.file


@dataclass(frozen=True)
class LoopAnswer:
    """What one run gave: new tokens and its counts."""

    tokens: list[int]
    steps: int
    drafted: int
    accepted: int


def open_loop(folder: Path, threads: int, provider: str | None = None) -> onnxruntime.InferenceSession:
    """The loop's session, on the provider that the artifact is for or on another one."""
    manifest = read_manifest(folder)
    name = provider_name(provider or manifest.provider)
    return open_session(folder / LOOP, name, manifest.session, threads)


def run_loop(
    session: onnxruntime.InferenceSession, ids: np.ndarray, tokens: int, eos: Sequence[int], drafts: int
) -> LoopAnswer:
    """``ids`` int64 [1, S]; an empty ``eos`` stops at nothing."""
    found = session.run(
        ["sequences", "num_steps", "num_drafted_tokens", "num_accepted_tokens"],
        {
            "input_ids": ids,
            "max_new_tokens": np.array(tokens, np.int64),
            "eos_token_id": np.array(eos or [-1], np.int64),
            "max_draft_tokens": np.array(drafts, np.int64),
        },
    )
    return LoopAnswer(found[0][0, ids.shape[1] :].tolist(), *(int(count) for count in found[1:]))
