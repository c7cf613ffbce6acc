"""``--draft prune-layers=0.6,...``: a model inside the artifact, cut from the same source, that drafts."""

from dataclasses import replace

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.nearest import nearest
from onnxforge.compiler.prune_option import COMPARE, with_pruning
from onnxforge.compiler.targets import Target

DRAFT_FOLDER = "draft"
"""Where it lies in the artifact: a whole artifact of its own, which loads alone too."""
PRUNE = "prune-"
_RECOVER = "recover"
_NO_BUSINESS = frozenset(("add-speculative-loop", "search-skipped", "skip-layers", "add-text-io", COMPARE))
"""Passes of the target that make other graphs than the one that drafts, or would compare it twice."""


def draft_target(target: Target) -> Target:
    """What the draft model of ``target`` is compiled for: the same, pruned further, with nothing promised.

    ``target.draft`` is ``prune-UNIT=SHARE,...``, the units being those of ``compile --prune``, and perhaps
    ``recover=HOW`` as ``compile --recover`` takes it.

    Raises:
        RequestRefused: an unknown unit or recovery, a value that means nothing, or a vocabulary of its own.
    """
    units, recovery = [], None
    for part in filter(None, (piece.strip() for piece in (target.draft or "").split(","))):
        name, _, value = part.partition("=")
        if name == _RECOVER:
            recovery = value
        elif name.startswith(PRUNE):
            units.append(part.removeprefix(PRUNE))
        else:
            raise RequestRefused(
                f"--draft {target.draft}: `{part}` is not understood{nearest(name, [_RECOVER])} Write "
                f"{PRUNE}layers=0.6,{PRUNE}mlp=0.2 (units as `--prune` takes them) and {_RECOVER}=HOW."
            )
    if any(unit.startswith("vocabulary") for unit in units):
        raise RequestRefused(
            f"--draft {target.draft}: a draft has to speak every token of its model. Leave the vocabulary "
            "out here; `--prune vocabulary=...` prunes that of both."
        )
    named = zip(target.passes, target.pass_names, strict=True)
    plain = tuple(step for step, name in named if name not in _NO_BUSINESS)
    base = replace(target, name=f"{target.name}-{DRAFT_FOLDER}", passes=plain, draft=None, speculation=0)
    try:
        return replace(with_pruning(base, ",".join(units), recovery), budget=())
    except RequestRefused as refused:
        raise RequestRefused(f"--draft {target.draft}: {refused}") from refused
