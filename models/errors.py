"""What can be wrong with a model that somebody hands us. Each message says what, where, and what to do."""

from collections.abc import Sequence


class SourceError(Exception):
    """The model cannot be read: missing, truncated, checksum wrong, a pickle, an unknown name."""

    @classmethod
    def listing(cls, what: str, problems: Sequence[str], advice: str) -> "SourceError":
        """One error that names every problem found: ``what``, the numbered ``problems``, then ``advice``."""
        if len(problems) == 1:
            return cls(f"{what}: {problems[0]}. {advice}")
        lines = "; ".join(f"({index}) {problem}" for index, problem in enumerate(problems, start=1))
        return cls(f"{what}: {len(problems)} problems: {lines}. {advice}")


class UnsupportedModel(Exception):
    """The model was read, but its architecture or task cannot be exported; the message says why."""
