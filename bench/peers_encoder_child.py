"""A peer's encoder answering the requests of `peers.py`: texts in, mean-pooled embeddings out.

    python bench/peers_encoder_child.py onnxruntime|openvino MODEL TOKENIZER.json THREADS LONGEST

Runs in a venv with tokenizers and onnxruntime or openvino; nothing of onnxforge is imported.
"""

import sys
import time
from collections.abc import Callable

import numpy as np
from peer_process import serve
from tokenizers import Tokenizer


def main() -> None:
    runtime, path, threads = sys.argv[1], sys.argv[2], int(sys.argv[4])

    def opened() -> Callable[[dict], dict]:
        tokenizer = Tokenizer.from_file(sys.argv[3])
        tokenizer.enable_truncation(int(sys.argv[5]))
        tokenizer.enable_padding()
        model = {"onnxruntime": on_onnxruntime, "openvino": on_openvino}[runtime](path, threads)

        def encode(texts: list[str]) -> np.ndarray:
            rows = tokenizer.encode_batch(texts)
            mask = np.array([row.attention_mask for row in rows], np.int64)
            hidden = model(
                {
                    "input_ids": np.array([row.ids for row in rows], np.int64),
                    "attention_mask": mask,
                    "token_type_ids": np.zeros_like(mask),
                }
            )
            weight = mask[..., None].astype(np.float32)
            pooled = (hidden * weight).sum(axis=1) / weight.sum(axis=1)
            return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)

        return lambda request: answered(encode, request)

    serve(opened)


def answered(encode: Callable[[list[str]], np.ndarray], request: dict) -> dict:
    """Embeddings, or the seconds they take after the same work once, to wake the process."""
    texts, batch = request["texts"], request["batch"]
    pieces = [texts[start : start + batch] for start in range(0, len(texts), batch)]
    if request["embeddings"]:
        return {"embeddings": np.concatenate([encode(piece) for piece in pieces]).tolist()}
    encode(pieces[0])
    started = time.perf_counter()
    for piece in pieces:
        encode(piece)
    return {"seconds": time.perf_counter() - started}


def on_onnxruntime(path: str, threads: int) -> Callable[[dict], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]
    return lambda feeds: session.run(["last_hidden_state"], {name: feeds[name] for name in names})[0]


def on_openvino(path: str, threads: int) -> Callable[[dict], np.ndarray]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(path, "CPU", options)
    request = model.create_infer_request()
    names = [item.get_any_name() for item in model.inputs]

    def run(feeds: dict) -> np.ndarray:
        request.infer({name: feeds[name] for name in names}, share_inputs=True)
        return request.get_tensor("last_hidden_state").data

    return run


if __name__ == "__main__":
    main()
