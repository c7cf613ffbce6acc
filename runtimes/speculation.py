"""What an artifact says about speculative decoding: do requests draft, how, and what does a step cost."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from onnxforge.runtimes.errors import ArtifactError
from onnxforge.runtimes.json_fields import JsonFields

NGRAM: Literal["ngram"] = "ngram"
LAYER_SKIP: Literal["layer-skip"] = "layer-skip"
DRAFT_MODEL: Literal["draft-model"] = "draft-model"
DrafterName = Literal["ngram", "layer-skip", "draft-model"]
MOST_DRAFT_TOKENS = 31
"""Drafted tokens of one step, at most: steps were compared bit for bit up to 32 rows."""
ROWS = 2
"""Runs of a request that drafts read a multiple of this: even runs agree bit for bit (`SharedState`)."""
USUAL_DRAFT_TOKENS = 7
"""Drafted tokens of one step where nobody says how many: with the token before them eight rows, and steps are
even."""
_NAMES: Mapping[str, DrafterName] = {NGRAM: NGRAM, LAYER_SKIP: LAYER_SKIP, DRAFT_MODEL: DRAFT_MODEL}
_MAY_BE_ABSENT = {"draft_model"}
"""A later addition, written only where it says something; an object without it is read as before."""


def verifying_rows(drafted: int) -> int:
    """Rows of a step that verifies so many tokens: they and the one before them, made even."""
    return 1 + drafted + -(1 + drafted) % ROWS


@dataclass(frozen=True)
class Speculation:
    """The object ``speculation`` of ``artifact.json``: the defaults of requests, and the curve behind them.

    A request overrides `max_draft_tokens`; `min_rows` holds for requests that do not draft too, so that
    drafting changes no token.
    """

    enabled: bool
    """Requests that say nothing draft."""
    max_draft_tokens: int
    """Drafted tokens per step, at most; 0 only where not enabled."""
    min_rows: int = 2
    """Every run reads a multiple of so many tokens: 2 where enabled, 1 for plain decoding."""
    drafter: DrafterName = NGRAM
    step_cost: tuple[float, ...] = ()
    """Time of a step of 1, 2, 3, ... rows over that of one row: the first is 1. Empty: not measured."""
    draft_graph: str | None = None
    """Relative path of the graph that can leave layers out. It may be there with ``ngram`` too: then requests
    of an artifact that was loaded with ``draft="layer-skip"`` go by it."""
    draft_model: str | None = None
    """Relative path of the folder of a smaller artifact, inside this one, that drafts. It may be there with
    ``ngram`` too: requests of an artifact that was loaded with ``draft="draft-model"`` go by it."""
    reason: str = ""
    """Why it is on or off, one sentence for people."""

    def __post_init__(self) -> None:
        """Raises ArtifactError for values that contradict one another."""
        for problem in _problems(self):
            raise ArtifactError(f"speculation: {problem}.")


def read_speculation(where: str, raw: object) -> Speculation:
    """The object as it stands in a manifest. Raises ArtifactError that names `where` and the key."""
    known = {item.name for item in fields(Speculation)}
    if not isinstance(raw, dict) or set(raw) | _MAY_BE_ABSENT != known:
        found = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
        raise ArtifactError(
            f"{where}: an object with the keys {sorted(known)} was expected, found {found}. "
            "Compile the model again."
        )
    values = JsonFields(where, raw)
    name = values.text("drafter")
    if name not in _NAMES:
        raise values.fail("drafter", " or ".join(_NAMES))
    try:
        return Speculation(
            enabled=values.flag("enabled"),
            max_draft_tokens=values.natural("max_draft_tokens"),
            min_rows=values.positive("min_rows"),
            drafter=_NAMES[name],
            step_cost=values.numbers("step_cost"),
            draft_graph=None if raw["draft_graph"] is None else values.text("draft_graph"),
            draft_model=None if raw.get("draft_model") is None else values.text("draft_model"),
            reason=values.text("reason") if raw["reason"] != "" else "",
        )
    except ArtifactError as error:
        found = str(error).removeprefix("speculation: ")
        raise ArtifactError(found if where in found else f"{where}: {found}") from error


def _problems(found: Speculation) -> list[str]:
    problems = []
    if not 0 <= found.max_draft_tokens <= MOST_DRAFT_TOKENS:
        problems.append(
            f"max_draft_tokens is {found.max_draft_tokens}, which is not 0 to {MOST_DRAFT_TOKENS}"
        )
    if found.min_rows not in (1, ROWS) or (found.enabled and found.min_rows != ROWS):
        problems.append(f"min_rows is {found.min_rows}; drafting needs {ROWS}, plain decoding 1")
    if found.enabled and found.max_draft_tokens == 0:
        problems.append("enabled with max_draft_tokens 0")
    if found.step_cost and (found.step_cost[0] != 1.0 or min(found.step_cost) <= 0):
        problems.append(f"step_cost is {found.step_cost}; it starts with 1 and holds numbers above 0")
    if found.draft_graph is None and found.drafter == LAYER_SKIP:
        problems.append(f"drafter {found.drafter} without a draft_graph")
    if found.draft_model is None and found.drafter == DRAFT_MODEL:
        problems.append(f"drafter {found.drafter} without a draft_model")
    return problems
