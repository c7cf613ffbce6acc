"""The reference that decoding is held against."""

import numpy as np
import onnxruntime
from tiny_artifacts import HEAD_DIM, KV_HEADS, LAYERS


def whole(model, ids):
    """Logits [n, vocabulary] of one plain run with an empty cache, by ONNX Runtime alone."""
    session = onnxruntime.InferenceSession(str(model.folder / model.manifest.graph))
    feeds = {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, len(ids)), np.int64),
        "position_ids": np.arange(len(ids))[None],
    }
    for i in range(LAYERS):
        for kind in ("key", "value"):
            dtype = model.graph.cache[0].dtype
            feeds[f"past_key_values.{i}.{kind}"] = np.zeros((1, KV_HEADS, 0, HEAD_DIM), dtype)
    names = {item.name for item in session.get_inputs()}
    return session.run(["logits"], {k: v for k, v in feeds.items() if k in names})[0][0]
