"""``--prune mlp=0.2,heads=0.1,layers=4`` and ``--recover``: what they do to a target."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.nearest import nearest
from onnxforge.compiler.targets import Bound, BudgetLine, Target

_BEFORE = frozenset(
    (
        "canonicalize",
        "fuse-norm",
        "fuse-rotary",
        "fuse-attention",
        "pack-qkv",
        "fuse-activation",
        "limit-logits",
    )
)
"""Pruning comes behind these, which make units easy to see, and before all that measures or quantizes."""


@dataclass(frozen=True)
class _Unit:
    """What ``--prune NAME=VALUE`` inserts."""

    steps: str
    """``{0}`` stands for the value, ``{refit}``, where its pass has that option, for ``,refit=false``."""
    whole_pieces: bool = False
    """Whole numbers are allowed too, and count them. They leave no matrix to fit in their place, so
    ``_REFIT_BEHIND`` does it."""


_REFIT_BEHIND = "distill-blocks{train=false}"
"""Once, behind all that is pruned."""
_USED = "used"
"""``vocabulary=used``: the tokens that the calibration data uses are all that stay."""
_UNITS: Mapping[str, _Unit] = {
    "vocabulary": _Unit("count-tokens prune-vocabulary{{share={0}}}"),
    "layers": _Unit("rank-layers{{count={0}}} prune-layers{{count={0}}}", whole_pieces=True),
    "attentions": _Unit(
        "rank-layers{{count={0},unit=attention}} prune-layers{{count={0},unit=attention}}",
        whole_pieces=True,
    ),
    "kv-heads": _Unit("correlate-inputs prune-heads{{share={0},unit=group{refit}}}"),
    "heads": _Unit("correlate-inputs measure-damage{{share={0},unit=heads}} prune-heads{{share={0}{refit}}}"),
    "mlp": _Unit("correlate-inputs measure-damage{{share={0}}} prune-mlp{{share={0},uniform=false{refit}}}"),
}
"""In the order in which they run, whatever the order on the command line: large pieces first."""
_METRICS = ("latency", "size", "flops")
"""``--prune latency=0.7``: a search decides what goes."""
_RECOVERY: Mapping[str, str] = {
    "none": "",
    "refit": "",
    "distill": "distill-blocks{{minutes={}}}",
    "distill-logits": "distill-logits{{minutes={}}}",
}
_MINUTES = 10
COMPARE = "compare-unpruned"
_CHANGES, _ROUNDS = ("prune-", "distill-"), ("insert-qdq", "quantize-weights")
"""Steps that the report is to say the price of: those inserted here, and those that round."""
_BUDGET: Mapping[str, BudgetLine] = {
    # What somebody asked to have removed is not judged by what it costs, which the report tells, but a model
    # that is ruined is not published: SmolLM2-135M without a fifth of its FFN channels is at 1.15, without 4
    # of 30 layers at 1.28, and the same cuts where they hurt most are at 10 and more.
    "perplexity_ratio": BudgetLine("perplexity_ratio", Bound.AT_MOST, 1.5),
    "cosine": BudgetLine("cosine", Bound.AT_LEAST, 0.9),
}


def with_pruning(target: Target, text: str, recover: str | None = None) -> Target:
    """``target`` with the pruning that ``text`` asks for, and ``recover`` behind it.

    Promises of equal numbers (``max_abs``) and close ones are replaced by wider ones; looser promises stay.

    Raises:
        RequestRefused: an unknown unit or recovery, or a value that means nothing.
    """
    asked = _parsed(text)
    kind, _, minutes = (recover or "refit").partition("=")
    steps = [
        step for name in (*_UNITS, *_METRICS) if name in asked for step in _steps(name, asked[name], kind)
    ]
    steps += _refit_behind(asked, kind)
    steps += _recovery(kind, minutes)
    ahead = ahead_of_pruning(target)
    passes = (*ahead, *_compared(steps, _CHANGES), *_compared(target.passes[len(ahead) :], _ROUNDS))
    return replace(target, passes=passes, budget=_budget(target.budget))


def _compared(steps: Sequence[str], behind: tuple[str, ...]) -> list[str]:
    """``steps`` with a comparison behind each whose name starts like one of ``behind``."""
    pairs = [(step, COMPARE) if step.startswith(behind) else (step,) for step in steps]
    return [step for pair in pairs for step in pair]


def ahead_of_pruning(target: Target) -> tuple[str, ...]:
    """The passes of ``target`` that run before anything is pruned."""
    named = enumerate(target.pass_names)
    return target.passes[: next((i for i, name in named if name not in _BEFORE), len(target.passes))]


def _parsed(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        if name not in (*_UNITS, *_METRICS):
            known = (*_UNITS, *_METRICS)
            raise RequestRefused(
                f"--prune {part}: `{name}` is nothing that can be removed{nearest(name, known)} "
                f"Known: {', '.join(known)}."
            )
        if name in found:
            raise RequestRefused(f"--prune {text}: `{name}` is there twice.")
        found[name] = _checked(name, value)
    if len(found) > 1 and (metric := next((name for name in found if name in _METRICS), None)):
        raise RequestRefused(f"--prune {text}: `{metric}` is for a search to meet; give it alone.")
    if not found:
        raise RequestRefused(f"--prune: say what, for example mlp=0.2 (known: {', '.join(_UNITS)}).")
    return found


def _checked(name: str, value: str) -> str:
    if name == "vocabulary" and value == _USED:
        return value
    counted = name in _UNITS and _UNITS[name].whole_pieces
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    whole = counted and number >= 1 and number.is_integer()
    if not (0 < number < 1 or whole):
        wanted = "a share between 0 and 1" + (", or how many" if counted else "")
        raise RequestRefused(f"--prune {name}={value}: `{name}` wants {wanted}.")
    return str(int(number)) if whole else f"{number:g}"


def _steps(name: str, value: str, recovery: str) -> Iterable[str]:
    fit = ",refit=false" if recovery == "none" else ""
    if name in _METRICS:
        return [f"prune-to-budget{{metric={name},ratio={value}{fit}}}"]
    if value == _USED:
        return ["count-tokens", "prune-vocabulary"]
    return _UNITS[name].steps.format(value, refit=fit).split()


def _recovery(kind: str, minutes: str) -> list[str]:
    if kind not in _RECOVERY:
        raise RequestRefused(
            f"--recover {kind}: there is no such recovery{nearest(kind, tuple(_RECOVERY))} "
            f"Known: {', '.join(_RECOVERY)}."
        )
    if not _RECOVERY[kind]:
        if minutes:
            raise RequestRefused(f"--recover {kind}={minutes}: `{kind}` takes no minutes.")
        return []
    try:
        length = float(minutes or _MINUTES)
    except ValueError:
        length = 0.0
    if not 0 < length < float("inf"):
        raise RequestRefused(f"--recover {kind}={minutes}: write the minutes, as in {kind}={_MINUTES}.")
    return [_RECOVERY[kind].format(f"{length:g}")]


def _refit_behind(asked: Iterable[str], kind: str) -> list[str]:
    pieces = any(name in _UNITS and _UNITS[name].whole_pieces for name in asked)
    return [_REFIT_BEHIND] if pieces and kind != "none" else []


def _budget(lines: tuple[BudgetLine, ...]) -> tuple[BudgetLine, ...]:
    kept = {line.metric: _BUDGET.get(line.metric, line) for line in lines if line.metric != "max_abs"}
    return tuple({**kept, **_BUDGET}.values())
