"""Before anything is published: the folder loads and runs, the way a user would load and run it."""

from pathlib import Path

from onnxforge.compiler.errors import SelfCheckFailed

NEW_TOKENS = 16


def self_check(folder: Path) -> None:
    """Load ``folder`` and generate 16 greedy tokens (decoders) or encode one sentence (encoders).

    Raises:
        SelfCheckFailed: it does not load, does not run, or its numbers are not finite.
    """
    import numpy as np

    from onnxforge.runtimes import load

    try:
        with load(folder) as model:
            if model.manifest.task.startswith("text-generation"):
                model.generate([0, 1], max_new_tokens=min(NEW_TOKENS, model.manifest.context_length - 2))
            elif not np.isfinite(model.encode(["A sentence to check the artifact with."])).all():
                raise SelfCheckFailed(
                    "The compiled encoder gives numbers that are not finite. Nothing was published."
                )
    except SelfCheckFailed:
        raise
    except Exception as error:
        raise SelfCheckFailed(
            f"The compiled artifact does not run: {type(error).__name__}: {error} Nothing was published. "
            "Compile with `--without` one pass after the other to find the one that broke it."
        ) from error
