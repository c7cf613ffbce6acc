"""What a speed test is, and what one configuration answered: shared by the parent and its children."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SpeedTest:
    """One thing to time, named as llama-bench names it: ``pp512``, ``tg128``, ``tg128 @ d512``."""

    prompt: int = 0
    """Tokens processed at once; timed."""
    generate: int = 0
    """Tokens produced one by one; timed."""
    depth: int = 0
    """Tokens already in the cache before the clock starts."""
    sentences: int = 0
    """Sentences encoded (encoders); timed."""

    @property
    def name(self) -> str:
        """The column ``test`` of the table."""
        if self.sentences:
            return f"encode{self.sentences}"
        parts = [f"pp{self.prompt}"] if self.prompt else []
        parts += [f"tg{self.generate}"] if self.generate else []
        return "+".join(parts) + (f" @ d{self.depth}" if self.depth else "")

    @property
    def work(self) -> int:
        """Tokens (or sentences) per run."""
        return self.sentences or self.prompt + self.generate


@dataclass(frozen=True)
class Timing:
    """The repeated runs of one test in one process."""

    test: SpeedTest
    seconds: tuple[float, ...]

    @property
    def rates(self) -> tuple[float, ...]:
        """Tokens (or sentences) per second of every run."""
        return tuple(self.test.work / s for s in self.seconds)

    @property
    def median(self) -> float:
        """Median rate."""
        return statistics.median(self.rates)

    @property
    def mean(self) -> float:
        """Mean rate."""
        return statistics.fmean(self.rates)

    @property
    def deviation(self) -> float:
        """Sample standard deviation of the rate; 0 for a single run."""
        return statistics.stdev(self.rates) if len(self.seconds) > 1 else 0.0


@dataclass(frozen=True)
class SpeedReport:
    """Everything measured of one artifact in its own process."""

    load_seconds: float
    peak_rss: int
    """Bytes: the process's high-water mark after every test."""
    threads: int
    timings: tuple[Timing, ...]
    first_token: Timing | None = None
    """From the public call to the first token of an answer, prompt included. None for encoders."""
    facts: Mapping[str, str] = field(default_factory=dict)

    def timing(self, name: str) -> Timing | None:
        """The timing of the test called ``name``."""
        return next((t for t in self.timings if t.test.name == name), None)
