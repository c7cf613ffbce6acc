"""Text to text with one run of an artifact's onnx/model_text.onnx: onnxruntime, nothing else.

compile smollm2-135m --target cpu-int8 --text-io -o build/smollm2
python examples/text.py build/smollm2 "Once upon a time" [new tokens] [draft tokens]
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main(folder: str, prompt: str, new_tokens: str = "64", draft_tokens: str = "8") -> None:
    """Print the answer, and on stderr what speculation did."""
    session = onnxruntime.InferenceSession(Path(folder, "onnx", "model_text.onnx"))
    config = json.loads(Path(folder, "generation_config.json").read_text())
    feeds = {
        "prompt": np.array([prompt], object),
        "max_new_tokens": np.array(int(new_tokens), np.int64),
        "eos_token_id": np.array(config.get("eos_token_id", []), np.int64).reshape(-1),
        "max_draft_tokens": np.array(int(draft_tokens), np.int64),
    }
    text, _, steps, drafted, accepted = session.run(None, feeds)  # the second: ids, the prompt's in front
    print(text[0])
    print(f"{steps} runs of the decoder, {accepted} of {drafted} drafted tokens accepted", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
