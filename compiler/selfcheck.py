"""Before anything is published: the folder loads and runs, the way a user would load and run it.

It happens in a process of its own: the compile's memory stays what its weights need, and a crash in native
code is an answer like any other.
"""

import subprocess
import sys
from pathlib import Path

from onnxforge.compiler.errors import SelfCheckFailed

NEW_TOKENS = 16
_PROMPT = (0, 1)
_SENTENCE = "A sentence to check the artifact with."


def self_check(folder: Path) -> None:
    """Load ``folder`` and generate 16 greedy tokens (decoders) or encode one sentence (encoders).

    A graph that generates in one run must say the tokens of step-by-step decoding, one with the tokenizer
    inside must read and write text as the tokenizer does, one that can leave layers out must run without
    them, and a draft model must draft.

    Raises:
        SelfCheckFailed: it does not load, does not run, or its numbers are not finite (which every
            call of the runtime looks for).
    """
    command = [sys.executable, "-m", "onnxforge.compiler.selfcheck", str(folder)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"it died with status {child.returncode}"]
        raise SelfCheckFailed(
            f"The compiled artifact does not run: {lines[-1]} Nothing was published. "
            "Compile with `--without` one pass after the other to find the one that broke it."
        )


def run_once(folder: Path) -> None:
    """The check itself, in this process; any exception means that the artifact is not usable.

    Where the artifact's provider is not on this machine, the CPU's stands in.
    """
    from onnxforge.compiler.draft_check import check_draft
    from onnxforge.compiler.loop_check import check_loop, has_loop, reference, tie_on
    from onnxforge.compiler.provider_here import stand_in
    from onnxforge.compiler.skip_check import can_skip, check_skip
    from onnxforge.compiler.text_check import PROMPT, check_text, has_text_graph
    from onnxforge.runtimes import Decoder, load
    from onnxforge.runtimes.artifact import read_manifest

    manifest = read_manifest(folder)
    provider = stand_in(manifest.provider)
    tie = tie_on(provider)
    wanted: list[int] = []
    asked: list[int] = []
    new_tokens = 0
    with load(folder, provider=provider) as model:
        if isinstance(model, Decoder):
            room = manifest.context_length - len(_PROMPT)
            model.generate(_PROMPT, max_new_tokens=min(NEW_TOKENS, room), do_sample=False)
            if has_loop(folder):
                # the context has to hold the last step's second row too
                wanted = reference(model, _PROMPT, min(NEW_TOKENS, room - 2), tie)
            if has_text_graph(folder):
                ids = tuple(model.tokenizer.encode(PROMPT, add_special_tokens=True))
                new_tokens = min(NEW_TOKENS, manifest.context_length - len(ids) - 2)
                asked = reference(model, ids, new_tokens, tie)
                new_tokens = len(asked) - len(ids)
        elif model.manifest.task == "feature-extraction":
            model.encode([_SENTENCE])
        else:
            model.logits([_SENTENCE])
    if wanted:  # the other session is closed: two would need twice the memory
        check_loop(folder, manifest, provider, wanted, len(wanted) - len(_PROMPT))
    if asked:
        check_text(folder, manifest, provider, asked, new_tokens)
    if can_skip(folder):
        check_skip(folder, provider, _PROMPT)
    if manifest.speculation is not None and manifest.speculation.draft_model is not None:
        check_draft(folder, provider, _PROMPT)


if __name__ == "__main__":
    try:
        run_once(Path(sys.argv[1]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
