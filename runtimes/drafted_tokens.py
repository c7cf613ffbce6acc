"""The loop that every drafter with a model runs: guess, read the guess, guess again."""

from collections.abc import Callable

from onnxforge.runtimes.binding import Floats
from onnxforge.runtimes.distribution import Distribution
from onnxforge.runtimes.drafter import MOST_CLASSES, Draft
from onnxforge.runtimes.sampling import Sampler

PRIOR = tuple((kind + 0.5) / MOST_CLASSES for kind in range(MOST_CLASSES))
"""A guess's class is how sure the model was, in steps of 1/12; at first it is believed."""


def drafted_tokens(
    sampler: Sampler,
    logits: Floats,
    run: Callable[[int], Floats],
    count: int,
    vocabulary: int,
    stop: frozenset[int],
) -> Draft:
    """At most `count` guesses behind `logits`, float32 [at least vocabulary]; `run` reads one token more.

    They are chosen by the request's own rule (penalty, temperature, top-k, top-p), so that the two
    distributions are near each other; drawn tokens come with theirs. Ids from 0 to `vocabulary` are proposed,
    and a token of `stop` is the last. What `sampler` has seen is afterwards what it was.
    """
    mark = sampler.mark()
    tokens: list[int] = []
    classes: list[int] = []
    sources: list[Distribution] = []
    while True:
        guess = sampler.guess(logits[:vocabulary])
        tokens.append(guess.token)
        classes.append(min(int(guess.confidence * MOST_CLASSES), MOST_CLASSES - 1))
        if guess.distribution is not None:
            sources.append(guess.distribution)
        if len(tokens) == count or guess.token in stop:
            break
        sampler.see((guess.token,))
        logits = run(guess.token)
    sampler.forget_since(mark)
    return Draft(tuple(tokens), tuple(classes), tuple(sources) if sources else None)
