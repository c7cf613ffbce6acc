"""Weights from GGUF are gguf's own dequantization bit for bit, and so is what their codes decode to."""

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from test_gguf_architectures import build, write

from onnxforge.models import open_model
from onnxforge.models.demo import locate_demo
from onnxforge.models.gguf_tensors import BLOCKS_META
from onnxforge.models.stored_blocks import MINIMUM, STORED_BLOCKS


def told(tensor, heads: int | None) -> np.ndarray:
    """gguf's values of a tensor of its reader, rows in the order of the Hugging Face parameter."""
    values = quants.dequantize(tensor.data, tensor.tensor_type)
    if heads is None:
        return values
    # The file holds the two members of each rotated pair side by side.
    by_head = values.reshape(heads, -1, *values.shape[1:])
    return np.concatenate([by_head[:, 0::2], by_head[:, 1::2]], axis=1).reshape(values.shape)


def decoded(blocks) -> np.ndarray:
    bits, block, origin = blocks.form
    codes, steps, minimums = blocks.read()
    grid = codes.reshape(*steps.shape, block).astype(np.float32)
    if origin == MINIMUM:
        values = grid * steps[..., None] + minimums[..., None]
    else:
        values = (grid - np.float32(1 << (bits - 1))) * steps[..., None]
    return values.reshape(codes.shape)


def assert_bits(path, every: int) -> set[str]:
    """Compare each ``every``-th tensor; the types among them whose codes were compared too."""
    reader = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    types = set()
    for tensor in list(open_model(str(path)).weights.values())[::every]:
        blocks = tensor.meta[BLOCKS_META]
        expected = told(reader[blocks.tensor.name], blocks.heads)
        ours = tensor.numpy()
        assert ours.dtype == np.float32
        assert ours.tobytes() == expected.astype(np.float32).tobytes(), blocks.tensor.name
        if STORED_BLOCKS in tensor.meta:
            assert decoded(tensor.meta[STORED_BLOCKS]).tobytes() == ours.tobytes(), blocks.tensor.name
            types.add(blocks.type_name)
    return types


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_1", "Q8_0"])
def test_values_and_codes_of_a_file_are_bit_equal_to_ggufs(tmp_path, type_name):
    path = tmp_path / "model.gguf"
    write(path, "llama", build("llama"), quantize=type_name)
    assert assert_bits(path, every=1) == {type_name}


def test_so_are_those_of_the_demo_model():
    """One in sixteen of its 272 tensors; `bench/stored_blocks.py` takes them all."""
    assert GGMLQuantizationType.Q4_1.name in assert_bits(locate_demo("smollm2-135m"), every=16)
