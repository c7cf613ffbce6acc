"""After the passes: is what the target promises in the graph? A fusion that matched nothing is an error."""

from collections import Counter

from onnxforge.compiler.errors import ExpectationMissed, RequestRefused
from onnxforge.compiler.observe import Ledger
from onnxforge.compiler.targets import Target

_SHOWN = 3


def check_kind(target: Target, kind: str) -> None:
    """Refuse a kind of model that ``target`` does not serve, before any pass runs.

    Raises:
        RequestRefused: with the reason, and what serves it.
    """
    if reason := target.refuses.get(kind):
        raise RequestRefused(f"Target `{target.name}` does not compile a {kind}: {reason}.")


def check_expectations(target: Target, kind: str, ledger: Ledger) -> None:
    """Refuse the graph when an operator that a pass of ``target`` should have made is missing.

    An expectation whose pass is not in the pipeline (``--without``) does not apply.

    Raises:
        ExpectationMissed: with the reasons that the pass gave for leaving places alone.
    """
    if not ledger.records:
        return
    present = {name.rsplit(".", 1)[-1] for name in ledger.records[-1].after.ops}
    ran = target.pass_names
    for expected in target.expects.get(kind, ()):
        if expected.made_by in ran and expected.op_type not in present:
            raise ExpectationMissed(
                f"Target `{target.name}` promises {expected.op_type}, "
                f"and the pass `{expected.made_by}` made none. "
                f"{_nearest_refusals(ledger, expected.made_by)} "
                f"Compile with `--without {expected.made_by}` to do without it."
            )


def _nearest_refusals(ledger: Ledger, pass_name: str) -> str:
    reasons = Counter(f"{note.what}: {note.reason}" for note in ledger.near_misses(pass_name))
    if not reasons:
        return "It saw nothing that resembles what it looks for."
    return "It declined: " + "; ".join(f"{text} ({n}x)" for text, n in reasons.most_common(_SHOWN)) + "."
