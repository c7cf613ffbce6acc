"""Before anything is published: the folder loads and runs, the way a user would load and run it."""

from pathlib import Path

from onnxforge.compiler.errors import SelfCheckFailed

NEW_TOKENS = 16
_PROMPT = (0, 1)
_SENTENCE = "A sentence to check the artifact with."


def self_check(folder: Path) -> None:
    """Load ``folder`` and generate 16 greedy tokens (decoders) or encode one sentence (encoders).

    Raises:
        SelfCheckFailed: it does not load, does not run, or its numbers are not finite (which every
            call of the runtime looks for).
    """
    from onnxforge.runtimes import Decoder, load

    try:
        with load(folder) as model:
            if isinstance(model, Decoder):
                room = model.manifest.context_length - len(_PROMPT)
                model.generate(_PROMPT, max_new_tokens=min(NEW_TOKENS, room), do_sample=False)
            elif model.manifest.task == "feature-extraction":
                model.encode([_SENTENCE])
            else:
                model.logits([_SENTENCE])
    except Exception as error:
        raise SelfCheckFailed(
            f"The compiled artifact does not run: {type(error).__name__}: {error} Nothing was published. "
            "Compile with `--without` one pass after the other to find the one that broke it."
        ) from error
