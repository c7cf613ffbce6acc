"""Arrays too large to hold all at once: on disk, read a page at a time."""

import tempfile

import numpy as np


def spilled(array: np.ndarray) -> np.ndarray:
    """A read-only copy of ``array``, mapped from a file that has no name.

    The file lies where ``TMPDIR`` says. The system frees it with the last reference, or with the process,
    however that ends.
    """
    with tempfile.TemporaryFile(prefix="onnxforge-spilled-") as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, dtype=array.dtype, mode="r", shape=array.shape)
