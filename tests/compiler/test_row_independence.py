"""What speculative decoding rests on: a row's logits do not depend on the rows beside it, bit for bit.

It holds for ONNX Runtime's kernels as they are: rows of one step are computed alike as long as their number
is even. A single row, and with some kernels the last of an odd number, is computed by another. The state
makes every run even; a new ONNX Runtime that breaks this must be noticed.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from onnxforge.compiler.build import build
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.targets import TARGETS
from onnxforge.runtimes.decoder_state import new_state

TASK = "text-generation-with-past"
FORMS = {
    "cpu-fp32": {"MatMul", "GroupQueryAttention"},
    "cpu-int8": {"DequantizeLinear", "GroupQueryAttention"},
    "cpu-int4": {"MatMulNBits", "GroupQueryAttention"},
}


@pytest.mark.parametrize("name", FORMS)
def test_even_steps_agree_bit_for_bit(
    name: str, tmp_path: Path, tiny_source: Callable, tiny_export: Callable
):
    target = next(row for row in TARGETS if row.name == name)
    passes = tuple(_small(text) for text in target.passes)
    build(
        tiny_source("llama"),
        tiny_export("llama"),
        replace(target, passes=passes),
        TASK,
        tmp_path,
        name=name,
    )
    found = {node.op_type for node in ir.load(tmp_path / "onnx/model.onnx").graph}
    assert FORMS[name] <= found
    ids = np.random.default_rng(0).integers(3, 96, 60)
    state = new_state(GraphSession(tmp_path).decoder_graph(), 1, 64, min_rows=2)
    state.prompt([ids[:20]])
    alone = [state.step(token.reshape(1, 1))[0, 0].copy() for token in ids[20:60]]
    for rows in (*range(2, 10), 16, 32):
        state.rewind(40)
        for start in range(0, 40, rows):
            logits = state.step(ids[None, 20 + start : min(20 + start + rows, 60)])[0]
            np.testing.assert_array_equal(logits, alone[start : start + rows])


def _small(text: str) -> str:
    """The pass with options that make it quantize matrices this small too, on little text."""
    more = {"insert-qdq": "min_elements=1", "quantize-weights": "min_elements=1", "calibrate": "samples=2"}
    name, _, rest = text.partition("{")
    if name not in more:
        return text
    return f"{name}{{{more[name]},{rest}" if rest else f"{name}{{{more[name]}}}"
