"""Run by a Python with onnxruntime-gpu for bench/cuda_placement.py: does every kernel take what it is given?

    python cuda_run_child.py GRAPH [KEY=VALUE ...]

Over libraries that compute nothing, all that kernels check on the CPU is checked. Prints JSON: for each way
in which the graph is used, "" or what was said.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
TYPES = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "int8": np.int8}
DECODER = {"prompts": (2, 5, 0), "a token": (2, 1, 5), "several tokens": (1, 3, 5)}
"""Rows, tokens of each, tokens in the cache: several tokens on a cache are read row by row."""
ENCODER = {"texts": (2, 7, 0)}


def main() -> None:
    path, *entries = sys.argv[1:]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for entry in entries:
        options.add_session_config_entry(*entry.split("=", 1))
    session = ort.InferenceSession(path, options, providers=[CUDA, "CPUExecutionProvider"])
    session.disable_fallback()
    inputs = session.get_inputs()
    uses = DECODER if any(value.name.startswith("past_key_values.") for value in inputs) else ENCODER
    said = {}
    for use, (rows, tokens, past) in uses.items():
        sizes = {"batch_size": rows, "sequence_length": tokens}
        sizes |= {"past_sequence_length": past, "total_sequence_length": past + tokens}
        feeds = {}
        for value in inputs:
            shape = [sizes[size] if isinstance(size, str) else size for size in value.shape]
            kind = TYPES[value.type.removeprefix("tensor(").removesuffix(")")]
            feeds[value.name] = np.full(shape, value.name == "attention_mask", kind)
        try:
            session.run(None, feeds)
        except Exception as error:
            said[use] = str(error)[-300:]
        else:
            said[use] = ""
    print(json.dumps(said))


if __name__ == "__main__":
    main()
