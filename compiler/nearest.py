"""What somebody probably meant, for messages about unknown names."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` when something in ``known`` is close to ``word``, else a full stop."""
    close = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    return f"; did you mean {' or '.join(f'`{name}`' for name in close)}?" if close else "."
