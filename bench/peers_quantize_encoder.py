"""Full int8 (weights and activations) for OpenVINO by NNCF's post-training quantization, for `peers.py`.

    python bench/peers_quantize_encoder.py MODEL.xml TOKENIZER.json TEXTS.json LONGEST OUT.xml

The texts are what it calibrates on. `optimum-cli` would take them from a data set of the Hub.
"""

import json
import sys
from pathlib import Path

import nncf
import numpy as np
import openvino as ov
from tokenizers import Tokenizer


def main() -> None:
    model = ov.Core().read_model(sys.argv[1])
    tokenizer = Tokenizer.from_file(sys.argv[2])
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(sys.argv[4]))
    names = [item.get_any_name() for item in model.inputs]

    def feeds(text: str) -> dict[str, np.ndarray]:
        ids = np.array([tokenizer.encode(text).ids], np.int64)
        known = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: known[name] for name in names}

    texts = json.loads(Path(sys.argv[3]).read_text())
    data = nncf.Dataset(texts, feeds)
    found = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(texts))
    ov.save_model(found, sys.argv[5])


if __name__ == "__main__":
    main()
