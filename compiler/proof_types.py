"""What a proof is asked, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnxforge.compiler.targets import BudgetLine
from onnxforge.runtimes.speculation import Speculation

EXPORT = "export"
"""The name under which ``build_reference`` builds the source's own graph: exported, and no pass applied."""

METRICS: Mapping[str, str] = {
    "perplexity_ratio": "perplexity over the unfused fp32 export's, same text and windows",
    "max_abs": "largest absolute difference of any output from the unfused fp32 export's",
    "mean_kl": "KL divergence from the unfused fp32 export, nats per token",
    "top1_agreement": "share of positions where both put the same token first",
    "decoding_max_relative": "cached steps of a ragged batch against a whole run: relative difference",
    "decoding_top1": "cached steps of a ragged batch against one whole run: share of equal first tokens",
    "cosine": "smallest cosine of a pooled sentence with the unfused fp32 export's",
    "label_agreement": "share of sentences (or tokens) given the same label",
    "size_ratio": "bytes on disk over the unfused fp32 export's, weights and graph",
    "decode_speed_ratio": "generated tokens per second over the baseline's in the same run",
    "prefill_speed_ratio": "prompt tokens per second over the baseline's in the same run",
    "encode_speed_ratio": "sentences per second over the baseline's in the same run",
}
"""What a budget line may be about. Which of them exist depends on the model: a decoder has no cosine."""

BuildReference = Callable[[str, Path], None]
"""``build_reference(target_name, folder)`` writes a loadable artifact (without proof) of the same source
into ``folder``, for a target's name or for :data:`EXPORT`."""


@dataclass(frozen=True)
class ProofOptions:
    """How much to measure, and against what."""

    target: str
    build_reference: BuildReference
    budget: tuple[BudgetLine, ...] = ()
    """Promises about the keys of :data:`METRICS`. Lines about another kind of model are not looked at."""
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
    patience: float = 90.0
    """Seconds after which no further round of speed tests starts. Two rounds are always made."""
    prompt_tokens: tuple[int, ...] = (512, 64)
    decode_tokens: int = 128
    decode_depth: int = 512
    """The second decode test starts after this many tokens."""
    speed: bool = True
    """``False`` leaves the clocks out (for tests, and for machines that are not quiet)."""
    seed: int = 0
    summary: str = ""
    """What the target is, in one line."""
    speculation: int | None = None
    """As the target has it: a draft length, 0 for never, None to measure (with the clocks) and decide."""


@dataclass(frozen=True)
class Proof:
    """The verdict: headline numbers by name, and every budget line that was missed, in words."""

    summary: Mapping[str, float | str | bool] = field(default_factory=dict)
    missed: tuple[str, ...] = ()
    speculation: Speculation | None = None
    """What requests are to do by default; None where nothing was measured."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """What was found to pay on this provider, beside what follows from the model."""
    worst: str = ""
    """Which layers to look at first when something was missed."""
