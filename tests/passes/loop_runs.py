"""A decoder read step by step, and the loop in the graph that has to say the same."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.targets import TARGETS
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop

VOCAB, CONTEXT = 97, 64
"""Of the models in tests/conftest.py."""
FUSED = tuple(text for text in TARGETS[0].passes if text != "add-speculative-loop")
INT8 = "quantize-weights{bits=8,block_size=32,accuracy_level=4}"
INT4 = "quantize-weights{bits=4,block_size=32}"
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8}
Answer = tuple[list[int], int, int, int]


def session(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, ["CPUExecutionProvider"])


class Plain:
    """Greedy decoding of the plain graph, an even number of rows a run: what the loop is held against."""

    def __init__(self, model: ir.Model) -> None:
        self._session = session(model)
        self._inputs = {item.name for item in self._session.get_inputs()}
        self._empty = {
            v.name: np.zeros((1, v.shape[1], CONTEXT, v.shape[3]), DTYPES[v.type])
            for v in self._session.get_inputs()
            if v.name.startswith("past")
        }

    def _rows(self, cache: dict[str, np.ndarray], before: int, tokens: list[int]) -> np.ndarray:
        feeds = {"input_ids": [tokens], "attention_mask": np.ones((1, before + len(tokens)))}
        feeds["position_ids"] = [range(before, before + len(tokens))]
        feeds = {name: np.array(feeds[name], np.int64) for name in feeds if name in self._inputs}
        logits, *present = self._session.run(None, feeds | cache)
        cache.update(zip(cache, present, strict=True))
        return logits[0]

    def first_logits(self, prompt: Sequence[int]) -> np.ndarray:
        return self._rows(dict(self._empty), 0, list(prompt))[-1]

    def answer(self, prompt: Sequence[int], new: int, eos: Sequence[int] = ()) -> list[int]:
        tokens, cache = list(prompt), dict(self._empty)
        padded = [*tokens, tokens[-1]] if len(tokens) % 2 else tokens
        logits = self._rows(cache, 0, padded)[len(tokens) - 1]
        for _ in range(min(new, CONTEXT - len(prompt))):
            tokens.append(int(logits.argmax()))
            if tokens[-1] in eos or len(tokens) == CONTEXT:
                break
            logits = self._rows(cache, len(tokens) - 1, [tokens[-1], 5])[0]
        return tokens


class Loop:
    """The derived graph."""

    def __init__(self, model: ir.Model, branches: str = "") -> None:
        step = AddSpeculativeLoop(branches=branches)
        step.requires(model)
        self.session = session(step(model).model)

    def answer(
        self, prompt: Sequence[int], new: int, eos: Sequence[int] = (), drafts: int = 8, **drawing: float
    ) -> Answer:
        feeds = {
            "input_ids": np.array([prompt], np.int64),
            "max_new_tokens": np.array(new, np.int64),
            "eos_token_id": np.array(eos, np.int64),
            "max_draft_tokens": np.array(drafts, np.int64),
        }
        for name, value in drawing.items():
            feeds[name] = np.array(value, np.float32 if name in ("temperature", "top_p") else np.int64)
        sequences, *counts = self.session.run(None, feeds)
        return sequences[0].tolist(), *(int(count) for count in counts)


def some_prompt(seed: int, length: int, alphabet: int = VOCAB) -> list[int]:
    return np.random.default_rng(seed).integers(3, alphabet, length).tolist()
