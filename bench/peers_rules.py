"""What the numbers of `peers.py` say: who is of equal quality, who is the best peer, which aims are held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

EQUAL_PERPLEXITY = 1.02
"""A decoder's perplexity over full precision's; above it, its weights are no yardstick for 8 bits."""
EQUAL_COSINE = 0.95
"""An encoder's mean cosine to full precision. Low, so that no peer falls out for being rough."""


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one thing on one system."""

    values: tuple[float, ...]
    center: float | None = None
    """The middle, where it is known better than from ``values``."""

    @property
    def median(self) -> float:
        return median(self.values) if self.center is None else self.center

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles over the median; 0 for fewer than three samples."""
        if len(self.values) < 3:
            return 0.0
        low, _, high = quantiles(self.values, n=4, method="inclusive")
        return (high - low) / 2 / self.median if self.median else 0.0

    @property
    def spread_text(self) -> str:
        """`` ±4%``; nothing for fewer than three samples, which have no quartiles."""
        return f" ±{100 * self.spread:.0f}%" if len(self.values) >= 3 else ""


@dataclass(frozen=True)
class Aim:
    """A promised ratio to the best peer."""

    what: str
    key: str
    ratio: float
    higher: bool = True

    @property
    def text(self) -> str:
        return f"{'>=' if self.higher else '<='} {self.ratio:.1f}x"


@dataclass(frozen=True)
class Verdict:
    """An aim beside what came of it; no ``reached`` where ours or every peer is missing."""

    aim: Aim
    ours: float | None = None
    peer: str = ""
    theirs: float | None = None

    @property
    def reached(self) -> float | None:
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def word(self) -> str:
        if self.reached is None:
            return "not measured"
        held = self.reached >= self.aim.ratio if self.aim.higher else self.reached <= self.aim.ratio
        return "held" if held else "MISSED"


AIMS = (
    Aim("prefill 512", "pp512", 2.0),
    Aim("prefill 64", "pp64", 1.5),
    Aim("decode, plain greedy, short context", "tg @ d64", 1.2),
    Aim("decode after 512", "tg @ d512", 1.3),
    Aim("grounded generation, each with its own speculation", "grounded", 1.5),
    Aim("time to first token at 512", "first_token", 0.5, higher=False),
    Aim("load time", "load", 1.0, higher=False),
    Aim("MiniLM batch 16 x 64 tokens", "16 x 64", 1.3),
)


def equal_quality(perplexity: Mapping[str, float], reference: str) -> dict[str, bool | None]:
    """Whether each system is within `EQUAL_PERPLEXITY` of ``reference``; None where nothing was measured."""
    if reference not in perplexity:
        return dict.fromkeys(perplexity)
    limit = EQUAL_PERPLEXITY * perplexity[reference]
    return {name: value <= limit for name, value in perplexity.items()}


def best_peer(
    values: Mapping[str, float], ours: Sequence[str], equal: Mapping[str, bool | None], higher: bool
) -> str | None:
    """The fastest that is not ours and not known to be of another quality; None when nobody is left.

    A system whose quality was not measured counts: leaving it out would flatter us.
    """
    rivals = {n: v for n, v in values.items() if n not in ours and equal.get(n) is not False}
    if not rivals:
        return None
    return (max if higher else min)(rivals, key=rivals.__getitem__)


def verdict(aim: Aim, values: Mapping[str, float], our: str, peer: str | None) -> Verdict:
    """``our`` value of ``values`` against the best ``peer``'s."""
    theirs = values.get(peer) if peer is not None else None
    return Verdict(aim, values.get(our), peer or "", theirs)


def better_way(rates: Mapping[str, float], ways: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Each system at its fastest: who loses by speculating would switch it off. ``ways`` by system."""
    found = {}
    for system, names in ways.items():
        measured = [rates[name] for name in names if name in rates]
        if measured:
            found[system] = max(measured)
    return found
