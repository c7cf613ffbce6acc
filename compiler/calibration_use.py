"""What steps of a compile were calibrated on, as reports and manifests keep it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationUse:
    """What steps of one compile were calibrated on."""

    source: str
    samples: int
    """Windows, sentences or records."""
    tokens: int
    asked_tokens: int
    ids_sha256: str
    """Of the real token ids in order, int64 little-endian."""
    seed: int
    steps: tuple[str, ...]
    """The text form of each step that used it."""
    distinct: int
    """Different tokens among them."""

    @property
    def is_short(self) -> bool:
        """Whether the data gave less than three quarters of the tokens asked for."""
        return self.tokens < 0.75 * self.asked_tokens

    def sentence(self) -> str:
        """The use as one line of a report."""
        short = f" of {self.asked_tokens:,} asked for" if self.is_short else ""
        return (
            f"{self.source}: {self.samples} samples, {self.tokens:,} tokens{short} "
            f"(sha256 of the ids {self.ids_sha256[:12]}), seed {self.seed}"
        )


def use_summary(uses: Sequence[CalibrationUse]) -> Mapping[str, float | str | bool]:
    """The first use under names for a manifest; nothing when no step was calibrated."""
    return {
        f"calibration_{name}": value
        for use in uses[:1]
        for name, value in (
            ("source", use.source),
            ("samples", use.samples),
            ("tokens", use.tokens),
            ("ids_sha256", use.ids_sha256),
            ("seed", use.seed),
            ("steps", " ".join(use.steps)),
        )
    }
