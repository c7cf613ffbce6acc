"""Position encodings of GGUF files: transformers computes from the rebuilt config what the file meant."""

from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from onnxforge.models import UnsupportedModel
from onnxforge.models.gguf_file import GgufFile, GgufTensor, Value
from onnxforge.models.gguf_rope import rope_config

_HEAD = 64


def _file(folder: Path, tables: dict[str, np.ndarray], **keys: Value) -> GgufFile:
    """A header with rope keys, and factor tables in a file of their own."""
    tensors, offset, path = {}, 0, folder / "tables.gguf"
    with path.open("wb") as file:
        for name, table in tables.items():
            data = table.astype(np.float32).tobytes()
            tensors[name] = GgufTensor(name, 0, table.shape, offset, len(data))
            offset += file.write(data)
    metadata: dict[str, Value] = {
        f"llama.rope.{name.replace('__', '.')}": value for name, value in keys.items()
    }
    return GgufFile(path, metadata, tensors)


def _config(values: dict[str, object]) -> LlamaConfig:
    sizes = {"hidden_size": _HEAD * 2, "num_attention_heads": 2, "head_dim": _HEAD}
    return LlamaConfig(**sizes, max_position_embeddings=131072, **values)


def _llama3_factors(theta: float, factor: float) -> np.ndarray:
    """Factors as the converter writes them, from the formula published with Llama 3.1."""
    low, high, context = 1.0, 4.0, 8192
    result = []
    for index in range(0, _HEAD, 2):
        wavelength = 2 * np.pi * theta ** (index / _HEAD)
        if wavelength < context / high:
            result.append(1.0)
        elif wavelength > context / low:
            result.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            result.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(result)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_table(factor, tmp_path):
    factors = _llama3_factors(500000.0, factor)
    file = _file(tmp_path, {"rope_freqs.weight": factors}, freq_base=500000.0)
    values = rope_config(file, "llama", _HEAD)
    assert values["rope_scaling"]["rope_type"] == "llama3"
    assert values["rope_scaling"]["factor"] == factor
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](_config(values), "cpu")
    plain = 1 / 500000.0 ** (np.arange(0, _HEAD, 2) / _HEAD)
    np.testing.assert_allclose(frequencies.numpy(), plain / factors, rtol=1e-5)


def test_a_table_that_is_not_llama3s_is_refused(tmp_path):
    factors = _llama3_factors(500000.0, 8.0)
    factors[20] *= 1.01
    file = _file(tmp_path, {"rope_freqs.weight": factors}, freq_base=500000.0)
    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight are not those of Llama 3\.1"):
        rope_config(file, "llama", _HEAD)


def test_a_table_of_ones_is_no_scaling(tmp_path):
    file = _file(tmp_path, {"rope_freqs.weight": np.ones(_HEAD // 2)}, freq_base=10000.0)
    assert rope_config(file, "llama", _HEAD) == {"rope_theta": 10000.0}


def test_linear_and_yarn_scaling_are_passed_on(tmp_path):
    linear = rope_config(_file(tmp_path, {}, scaling__type="linear", scaling__factor=4.0), "llama", _HEAD)
    assert linear == {"rope_theta": 10000.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    keys = {"scaling__type": "yarn", "scaling__factor": 4.0, "scaling__original_context_length": 4096}
    yarn = rope_config(_file(tmp_path, {}, **keys), "llama", _HEAD)["rope_scaling"]
    assert yarn == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
    with pytest.raises(UnsupportedModel, match="rope scaling 'weird' with factor"):
        rope_config(_file(tmp_path, {}, scaling__type="weird", scaling__factor=2.0), "llama", _HEAD)


def test_a_part_of_each_head_may_be_turned(tmp_path):
    values = rope_config(_file(tmp_path, {}, dimension_count=16), "llama", _HEAD)
    assert values == {"rope_theta": 10000.0, "partial_rotary_factor": 0.25}


def test_factors_that_follow_the_prompt_are_refused(tmp_path):
    tables = {f"rope_factors_{name}.weight": np.linspace(1, 9, 32) for name in ("long", "short")}
    with pytest.raises(UnsupportedModel, match=r"rope_factors_long.* follow the length of the prompt"):
        rope_config(_file(tmp_path, tables), "llama", _HEAD)
