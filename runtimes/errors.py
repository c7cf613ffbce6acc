"""What can go wrong while an artifact is loaded or run. Each message says what, where, and what to do."""


class ArtifactError(Exception):
    """The folder is not a whole, untampered artifact: missing, extra, truncated or changed files."""


class ContextOverflow(Exception):
    """Prompt plus new tokens exceed the model's context; raised before anything runs."""


class NumericalError(Exception):
    """The model produced NaN logits."""


class RequestError(Exception):
    """The request cannot be served as written: bad option, empty prompt, wrong kind of model."""
