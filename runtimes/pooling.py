"""From token vectors to one vector per text, as sentence-transformers pools."""

import numpy as np

from onnxforge.runtimes.binding import Floats, Int64s
from onnxforge.runtimes.encoder_settings import Pooling


def pool(hidden: Floats, mask: Int64s, pooling: Pooling) -> Floats:
    """Hidden states float32 [batch, tokens, dim] and mask [batch, tokens] to float32 [batch, dim]."""
    weights = mask[:, :, None].astype(np.float32)
    if pooling == "mean":
        mean: Floats = (hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), np.float32(1e-9))
        return mean
    if pooling == "max":
        highest: Floats = np.where(weights > 0, hidden, np.float32(-1e9)).max(axis=1)
        return highest
    positions = np.arange(mask.shape[1]) * mask
    place = mask.argmax(axis=1) if pooling == "cls" else positions.argmax(axis=1)
    chosen: Floats = hidden[np.arange(len(hidden)), place]
    return chosen


def normalized(vectors: Floats) -> Floats:
    """Vectors [batch, dim] scaled to length 1; a zero vector stays zero (torch.nn.functional.normalize)."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.maximum(length, np.float32(1e-12))
    return scaled
