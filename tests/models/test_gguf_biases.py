"""The biases of projections whose rows GGUF interleaves move element for element."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType, quants

from onnxforge.models import UnsupportedModel
from onnxforge.models.gguf_architectures import ARCHITECTURES
from onnxforge.models.gguf_file import GgufFile, GgufTensor
from onnxforge.models.gguf_tensors import bind_weights

HEADS, PAIRS = 2, 16
VALUES = np.arange(2 * HEADS * PAIRS, dtype=np.float32)


def bias(folder: Path, kind: GGMLQuantizationType) -> Callable[[], dict[str, ir.LazyTensor]]:
    """A file whose only tensor is the bias of q, stored as ``kind``; call it to read it."""
    data = quants.quantize(VALUES[None], kind)[0].view(np.uint8)
    path = folder / "bias.bin"
    path.write_bytes(data.tobytes())
    tensor = GgufTensor("blk.0.attn_q.bias", int(kind), VALUES.shape, 0, data.size)
    file = GgufFile(path, {}, {tensor.name: tensor})
    return partial(bind_weights, file, ARCHITECTURES["llama"], heads=HEADS, kv_heads=HEADS)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_bias_moves_element_for_element(kind, tmp_path):
    weights = bias(tmp_path, GGMLQuantizationType[kind])()
    halves = VALUES.reshape(HEADS, PAIRS, 2).swapaxes(1, 2).reshape(-1)
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.q_proj.bias"].numpy(), halves)


def test_a_bias_in_blocks_cannot_move_and_is_named(tmp_path):
    read = bias(tmp_path, GGMLQuantizationType.Q8_0)
    with pytest.raises(UnsupportedModel, match=r"'blk\.0\.attn_q\.bias' is a bias in blocks of Q8_0"):
        read()
