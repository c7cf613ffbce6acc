"""What a proof is asked, what it may not exceed, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

EXPORT = "export"
"""The name under which ``build_reference`` builds the source's own graph: exported, and no pass applied."""


@dataclass(frozen=True)
class Budget:
    """What a target promises. ``None`` promises nothing; every other line is measured and enforced.

    ``at most`` lines: ``perplexity_ratio``, ``max_abs_logit_diff``, ``mean_kl`` (nats per token),
    ``max_abs_hidden_diff`` (encoders), ``size_ratio`` (bytes on disk beside the unfused fp32 export).
    ``at least`` lines: ``min_top1_agreement`` (0 to 1), ``min_cosine`` and ``min_label_agreement``
    (encoders), and the speed ratios, which are tokens (or sentences) per second of the artifact over the
    baseline's in the same run.
    """

    perplexity_ratio: float | None = None
    max_abs_logit_diff: float | None = None
    mean_kl: float | None = None
    min_top1_agreement: float | None = None
    min_cosine: float | None = None
    max_abs_hidden_diff: float | None = None
    min_label_agreement: float | None = None
    size_ratio: float | None = None
    decode_speed_ratio: float | None = None
    prefill_speed_ratio: float | None = None
    encode_speed_ratio: float | None = None


BuildReference = Callable[[str, Path], None]
"""``build_reference(target_name, folder)`` writes a loadable artifact (without proof) of the same source
into ``folder``, for a target's name or for :data:`EXPORT`."""


@dataclass(frozen=True)
class ProofOptions:
    """How much to measure, and against what."""

    target: str
    budget: Budget
    build_reference: BuildReference
    baseline: str = "cpu-fp32"
    """The target whose speed is the yardstick. Its own artifact is held against the unfused export."""
    command: tuple[str, ...] = ()
    """The exact command line, for the report."""
    text: Path | None = None
    """UTF-8 file for perplexity; ``None`` is the held-out half of ``pydoc_data.topics``."""
    windows: int = 8
    window: int = 512
    """Tokens per window."""
    sentences: int = 64
    """Sentences compared, for encoders."""
    rounds: int = 3
    """Interleaved repetitions of every speed test; medians are reported."""
    prompt_tokens: tuple[int, ...] = (512, 64)
    decode_tokens: int = 64
    decode_depth: int = 512
    """The second decode test starts after this many tokens."""
    speed: bool = True
    """``False`` leaves the clocks out (for tests and for machines that are not quiet)."""
    seed: int = 0


@dataclass(frozen=True)
class Proof:
    """The verdict: headline numbers by name, and every budget line that was missed, in words."""

    summary: Mapping[str, float | str | bool] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
