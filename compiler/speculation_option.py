"""``--speculation off|auto|N``: what it does to a target, and where it cannot be had."""

from dataclasses import replace

from onnxforge.compiler.draft_model import DRAFT_FOLDER
from onnxforge.compiler.draft_option import SKIP_GRAPH, skips_layers
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.targets import CPU, Target
from onnxforge.runtimes.speculation import MOST_DRAFT_TOKENS, Speculation

_ATTENTION = "fuse-attention"
OFF, AUTO = "off", "auto"


def draft_tokens(text: str | int, where: str = "--speculation") -> int | None:
    """What ``off``, ``auto`` or a number says: 0, None, or that number of drafted tokens per step.

    Raises:
        RequestRefused: it says none of these.
    """
    if text == AUTO:
        return None
    if text == OFF:
        return 0
    number = int(text) if str(text).isascii() and str(text).isdigit() else -1
    if isinstance(text, bool) or not 1 <= number <= MOST_DRAFT_TOKENS:
        raise RequestRefused(
            f"{where} is {text!r}; write auto (measure and decide), off, or how many tokens a step drafts at "
            f"most, 1 to {MOST_DRAFT_TOKENS}."
        )
    return number


def as_text(choice: int | None) -> str | int:
    """The choice as recipes and target files write it; :func:`draft_tokens` reads it."""
    return AUTO if choice is None else OFF if choice == 0 else choice


def with_speculation(target: Target, text: str) -> Target:
    """``target`` with the choice that ``text`` makes."""
    return replace(target, speculation=draft_tokens(text))


def check_speculation(target: Target) -> None:
    """Refuse a draft length that was asked for by number and cannot be had on ``target``.

    Raises:
        RequestRefused: before anything is compiled.
    """
    if not target.speculation:
        return
    if target.provider != CPU:
        raise RequestRefused(
            f"--speculation {target.speculation}: target `{target.name}` runs on {target.provider}, where "
            "nobody has checked that drafts leave the text as it is. Use a cpu target, or --speculation auto."
        )
    if _ATTENTION not in target.pass_names:
        raise RequestRefused(
            f"--speculation {target.speculation}: target `{target.name}` has no pass `{_ATTENTION}`, and "
            "only the cache of the GroupQueryAttention that it makes can be rewound in place. Add it, or "
            "leave --speculation out."
        )


def check_artifact(target: Target, task: str, shared_cache: bool) -> None:
    """The same for what the finished graph turned out to be, and for a draft model.

    Raises:
        RequestRefused: it is no decoder, or one whose cache cannot be rewound in place.
    """
    if target.draft is not None and not shared_cache:
        raise RequestRefused(
            f"--draft {target.draft}: a draft model needs a decoder to draft for, whose attentions are all "
            f"GroupQueryAttention, and this {task} graph is not. Leave --draft out."
        )
    if target.speculation and not shared_cache:
        raise RequestRefused(
            f"--speculation {target.speculation}: speculative decoding needs a decoder whose attentions are "
            f"all GroupQueryAttention, and this {task} graph is not. Leave --speculation out."
        )


def undecided(target: Target) -> Speculation | None:
    """What an artifact says of speculation before it was proven: nothing drafts, and what could."""
    if not skips_layers(target) and target.draft is None:
        return None
    return _brings(target, Speculation(False, 0, min_rows=1, reason="nothing was measured"))


def unmeasured(target: Target) -> Speculation | None:
    """What artifact.json says where nothing was measured: what was asked for, and no more on ``auto``."""
    if target.speculation is None:
        return undecided(target)
    if target.speculation == 0:
        off = "switched off when it was compiled (--speculation off)"
        return _brings(target, Speculation(False, 0, min_rows=1, reason=off))
    asked = Speculation(
        enabled=True,
        max_draft_tokens=target.speculation,
        reason=f"asked for when it was compiled (--speculation {target.speculation}); neither that drafts "
        "leave the text as it is nor that they pay was measured",
    )
    return _brings(target, asked)


def _brings(target: Target, said: Speculation) -> Speculation:
    """``said``, and where the graph and the model are that artifacts of ``target`` bring to draft."""
    return replace(
        said,
        draft_graph=SKIP_GRAPH if skips_layers(target) else None,
        draft_model=DRAFT_FOLDER if target.draft is not None else None,
    )
