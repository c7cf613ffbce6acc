"""Does the graph that can leave layers out run without them?"""

from pathlib import Path

import numpy as np

from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.passes.skip_layers import SkipLayers
from onnxforge.runtimes import load
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.shared_state import SharedState
from onnxforge.runtimes.speculation import LAYER_SKIP


def can_skip(folder: Path) -> bool:
    """Whether the artifact has such a graph."""
    return (folder / SkipLayers.file).is_file()


def check_skip(folder: Path, provider: str, prompt: tuple[int, ...]) -> None:
    """Guess one token behind ``prompt`` with layers left out.

    Raises:
        SelfCheckFailed: the graph fails where its branches have no rows, or answers no numbers.
    """
    with load(folder, provider=provider, draft=LAYER_SKIP) as model:
        assert isinstance(model, Decoder)
        state = model.new_state()
        assert isinstance(state, SharedState)
        state.prompt([np.array(prompt, np.int64)])
        try:
            guessed = state.skim(prompt[-1])
        except RuntimeError as error:  # ONNX Runtime's own errors are of this kind
            raise SelfCheckFailed(
                f"{SkipLayers.file} does not run with layers left out: {error} Leave --draft out."
            ) from error
        if not np.isfinite(guessed).all():
            raise SelfCheckFailed(f"{SkipLayers.file} answers NaN with layers left out. Leave --draft out.")
