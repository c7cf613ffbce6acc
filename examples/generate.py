"""Generate text with one run of an artifact's onnx/model_spec.onnx: onnxruntime and tokenizers, nothing else.

python examples/generate.py build/smollm2 "Once upon a time" [new tokens] [draft tokens]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


def main(folder: str, prompt: str, new_tokens: str = "64", draft_tokens: str = "8") -> None:
    """Print the answer, and on stderr what speculation did."""
    tokenizer = Tokenizer.from_file(str(Path(folder, "tokenizer.json")))
    session = onnxruntime.InferenceSession(Path(folder, "onnx", "model_spec.onnx"))
    config = json.loads(Path(folder, "generation_config.json").read_text())
    ids = np.array([tokenizer.encode(prompt).ids], np.int64)
    feeds = {
        "input_ids": ids,
        "max_new_tokens": np.array(int(new_tokens), np.int64),
        "eos_token_id": np.array(config.get("eos_token_id", []), np.int64).reshape(-1),
        "max_draft_tokens": np.array(int(draft_tokens), np.int64),
    }
    sequences, steps, drafted, accepted = session.run(None, feeds)
    print(tokenizer.decode(sequences[0, ids.shape[1] :]))
    print(f"{steps} runs of the decoder, {accepted} of {drafted} drafted tokens accepted", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
