"""Does the draft model that came with the artifact run, and draft for it?"""

from collections.abc import Sequence
from pathlib import Path

from onnxforge.compiler.errors import SelfCheckFailed
from onnxforge.runtimes import load
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.speculation import DRAFT_MODEL

_TOKENS = 8


def check_draft(folder: Path, provider: str, prompt: Sequence[int]) -> None:
    """Answer ``prompt`` with drafts of the smaller model.

    Raises:
        SelfCheckFailed: it does not run, or its vocabulary is another.
    """
    with load(folder, provider=provider, draft=DRAFT_MODEL) as model:
        assert isinstance(model, Decoder)
        room = model.manifest.context_length - len(prompt) - 1
        if room < 1:
            return
        try:
            model.generate(prompt, max_new_tokens=min(_TOKENS, room), do_sample=False, max_draft_tokens=1)
        except RuntimeError as error:  # ONNX Runtime's own errors are of this kind
            raise SelfCheckFailed(f"The draft model does not run: {error} Leave --draft out.") from error
