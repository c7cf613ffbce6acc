"""What can be wrong with a model that somebody hands us. Each message says what, where, and what to do."""


class SourceError(Exception):
    """The model cannot be read: missing, truncated, checksum wrong, a pickle, an unknown name."""


class UnsupportedModel(Exception):
    """The model was read, but its architecture or task cannot be exported; the message says why."""
