"""What can be wrong with a model that somebody hands us. Each message says what, where, and what to do."""

from collections.abc import Sequence


class SourceError(Exception):
    """The model cannot be read: missing, truncated, checksum wrong, a pickle, an unknown name."""

    @classmethod
    def listing(cls, what: str, problems: Sequence[str], advice: str) -> "SourceError":
        """One error that names every problem found: ``what``, the numbered ``problems``, then ``advice``."""
        parts = [_unended(problem) for problem in problems]
        if len(parts) > 1:
            parts = [f"({index}) {part}" for index, part in enumerate(parts, start=1)]
            what = f"{what}: {len(parts)} problems"
        told = f"{what}: {'; '.join(parts)}"
        return cls(f"{told}{'' if told.endswith('...') else '.'} {advice}")


def _unended(sentence: str) -> str:
    """Without its full stop, so that it can go on; the last words may be another error's whole message."""
    return sentence if sentence.endswith("...") else sentence.rstrip(".")


class UnsupportedModel(Exception):
    """The model was read, but its architecture or task cannot be exported; the message says why."""
