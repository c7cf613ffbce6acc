"""GPTQ, AWQ and compressed-tensors folders: exact values, the stored codes, and every mismatch at once."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from packed_checkpoints import Recipe, pack, words, write
from safetensors import safe_open
from safetensors.numpy import save_file

from onnxforge.models import SourceError, UnsupportedModel, open_model
from onnxforge.models.hub import _WANTED
from onnxforge.models.stored_blocks import STORED_BLOCKS, STORED_BLOCKS_TURNED, ZERO

FIXTURES = sorted(Path(__file__).parent.joinpath("packed").glob("*.safetensors"))
MODULE = "model.layers.0.mlp.down_proj"
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
RECIPES = (
    Recipe("gptq"),
    Recipe("gptq", symmetric=True, group=128),
    Recipe("gptq", bits=8, group=64),
    Recipe("gptq", shuffled=True),
    Recipe("gptq_v2", group=-1),
    Recipe("gptq_v2", bits=8, group=16, shuffled=True, scales="bfloat16"),
    Recipe("awq"),
    Recipe("awq", group=128),
    Recipe("awq", group=-1),
    Recipe("pack-quantized"),
    Recipe("pack-quantized", symmetric=True, group=64, scales="bfloat16"),
    Recipe("pack-quantized", bits=8, group=-1),
    Recipe("pack-quantized", bits=8, symmetric=True, shuffled=True),
)


def folder(path: Path, tensors: dict[str, np.ndarray], quantization: object, **config: object) -> Path:
    """A folder with one packed module and this configuration."""
    path.mkdir(exist_ok=True)
    told = {"model_type": "llama", "quantization_config": quantization} | config
    (path / "config.json").write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    stored = {f"{MODULE}.{name}" if "." not in name else name: array for name, array in tensors.items()}
    save_file(stored, path / "model.safetensors")
    return path


def opened(path: Path) -> ir.TensorProtocol:
    return open_model(str(path)).weights[f"{MODULE}.weight"]


def decoded(tensor: ir.TensorProtocol) -> np.ndarray:
    """What the blocks of ``tensor`` stand for, in the order of its columns."""
    blocks = tensor.meta[STORED_BLOCKS]
    bits, block, origin = blocks.form
    codes, steps, zeros = blocks.read()
    assert codes.dtype == np.uint8
    assert codes.max() < 1 << bits
    assert (zeros is not None) == (origin == ZERO)
    centre = np.float32(1 << (bits - 1)) if zeros is None else zeros.repeat(block, 1).astype(np.float32)
    values = (codes - centre) * steps.repeat(block, 1)
    if blocks.order is not None:
        assert sorted(blocks.order) == list(range(len(blocks.order)))
        values[:, blocks.order] = values.copy()
    return values


def normal(count: int, width: int) -> np.ndarray:
    values = np.random.default_rng(1).standard_normal((count, width)).astype(np.float32)
    values[0] = np.abs(values[0])  # no negative number: a zero point of 0, for GPTQ 15 and a borrow
    return values


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_what_other_programs_packed_is_what_they_say_it_is(tmp_path, file):
    with safe_open(file, "np") as stored:
        told = stored.metadata()
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "quantization_config": json.loads(told["config"])})
    )
    (tmp_path / "model.safetensors").write_bytes(file.read_bytes())
    (name,) = (name for name in open_model(str(tmp_path)).weights if name.endswith(".weight"))
    weight = open_model(str(tmp_path)).weights[name]
    values = weight.numpy()
    assert hashlib.sha256(values.astype(told["dtype"]).tobytes()).hexdigest() == told["sha256"]
    np.testing.assert_array_equal(decoded(weight), values)


def test_the_fixtures_are_there():
    assert len(FIXTURES) == 19


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.title)
def test_values_and_codes_are_exact(tmp_path, recipe):
    tensors, values = pack(normal(40, 256), recipe)
    weight = opened(folder(tmp_path, tensors, recipe.config()))
    assert weight.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(weight.numpy(), values)
    np.testing.assert_array_equal(decoded(weight), values)
    assert (weight.meta[STORED_BLOCKS].order is not None) == recipe.shuffled


@pytest.mark.parametrize("method", ["gptq", "pack-quantized"])
def test_rows_and_groups_that_do_not_fill_their_words_are_read(tmp_path, method):
    """20 rows of zero points, and a last group of 32 columns out of 64."""
    tensors, values = pack(normal(20, 96), Recipe(method, group=64))
    weight = opened(folder(tmp_path, tensors, Recipe(method, group=64).config()))
    np.testing.assert_array_equal(weight.numpy(), values)
    np.testing.assert_array_equal(decoded(weight), values)
    assert weight.meta[STORED_BLOCKS].form[1] == 32


def test_groups_that_fit_no_block_come_as_float_alone(tmp_path):
    tensors, values = pack(normal(16, 80), Recipe("gptq", group=40))
    weight = opened(folder(tmp_path, tensors, Recipe("gptq", group=40).config()))
    np.testing.assert_array_equal(weight.numpy(), values)
    assert STORED_BLOCKS not in weight.meta


def test_a_symmetric_checkpoint_whose_zero_points_say_otherwise_keeps_them(tmp_path):
    tensors, values = pack(normal(16, 64), Recipe("gptq"))
    weight = opened(folder(tmp_path, tensors, Recipe("gptq", symmetric=True).config()))
    assert weight.meta[STORED_BLOCKS].form == (4, 32, ZERO)
    np.testing.assert_array_equal(weight.numpy(), values)


def test_modules_may_differ_where_the_configuration_says_so(tmp_path):
    small, small_values = pack(normal(16, 64), Recipe("gptq"))
    large, large_values = pack(normal(16, 64), Recipe("gptq", bits=8, group=64))
    rules = {r"+:.*up_proj": {"bits": 8, "group_size": 64}, r"-:.*gate_proj": {}}
    tensors = small | {f"model.layers.0.mlp.up_proj.{name}": array for name, array in large.items()}
    weights = open_model(str(folder(tmp_path, tensors, Recipe("gptq").config() | {"dynamic": rules}))).weights
    np.testing.assert_array_equal(weights[f"{MODULE}.weight"].numpy(), small_values)
    np.testing.assert_array_equal(weights["model.layers.0.mlp.up_proj.weight"].numpy(), large_values)


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False, "sym": False}),
        ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM", "zero_point": True}),
    ],
)
def test_older_packers_said_it_in_a_file_of_its_own(tmp_path, file, config):
    tensors, values = pack(normal(16, 64), Recipe("gptq" if "bits" in config else "awq"))
    path = folder(tmp_path, tensors, None)
    (path / file).write_text(json.dumps(config))
    np.testing.assert_array_equal(opened(path).numpy(), values)
    assert file in open_model(str(path)).digests
    assert file in _WANTED


def test_packed_weights_without_any_configuration_are_named(tmp_path):
    tensors, _ = pack(normal(16, 64), Recipe("gptq"))
    with pytest.raises(SourceError, match=r"packed weights \('model.*qweight' is the first of 1\)"):
        open_model(str(folder(tmp_path, tensors, None)))


GPTQ = Recipe("gptq").config()
PACKED = Recipe("pack-quantized").config()
WEIGHTS = PACKED["config_groups"]["group_0"]["weights"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "fp8"}, r"'fp8', which is not read.*Read: gptq.*model.dequantize"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"'bitsandbytes'.*model.dequantize\(\)"),
        ({"quant_method": "mxfp4"}, "'mxfp4', which is not read"),
        ({"load_in_8bit": True}, "no quant_method"),
        (GPTQ | {"bits": 3}, "weights of 3 bits are not read; 4 and 8 are"),
        (GPTQ | {"bits": 2, "group_size": 0}, r"2 bits are not read.*; group_size 0 is not possible"),
        (GPTQ | {"bits": "four"}, "bits is 'four', not a whole number"),
        (GPTQ | {"bits": True}, "bits is True, not a whole number"),
        ({"quant_method": "gptq"}, "bits is missing"),
        (GPTQ | {"group_size": -128}, "group_size -128 is not possible"),
        (GPTQ | {"checkpoint_format": "marlin"}, "checkpoint_format 'marlin' is not read; gptq and gptq_v2"),
        (GPTQ | {"format": "gptq_v2"}, "two layouts are named"),
        (GPTQ | {"is_marlin_format": True}, "Marlin's layout"),
        (GPTQ | {"dynamic": {"+:x": {"bits": 2}}}, "weights of 2 bits"),
        (Recipe("awq").config() | {"version": "gemv"}, "version 'gemv' is not read; gemm is"),
        (Recipe("awq").config() | {"bits": 8}, "awq with 8 bits has no layout"),
        (PACKED | {"format": "float-quantized"}, "format 'float-quantized' is not read"),
        (PACKED | {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme, which would be lost"),
        (
            PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparsity format 'sparse-24",
        ),
        (PACKED | {"config_groups": {}}, "describe no weights"),
        (PACKED | {"config_groups": {"g": {"weights": WEIGHTS | {"type": "float"}}}}, "of type 'float'"),
        (
            PACKED | {"config_groups": {"g": {"weights": WEIGHTS | {"strategy": "block"}}}},
            "strategy of g is 'block'",
        ),
        (
            PACKED | {"config_groups": {"g": {"weights": WEIGHTS, "input_activations": {"num_bits": 8}}}},
            "g quantizes input_activations",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, config, message):
    tensors, _ = pack(normal(16, 64), Recipe("gptq"))
    with pytest.raises(UnsupportedModel, match=message):
        open_model(str(folder(tmp_path, tensors, config)))


def test_everything_that_does_not_fit_is_told_at_once(tmp_path):
    good, _ = pack(normal(16, 64), Recipe("gptq"))
    far = good["g_idx"].copy()
    far[3] = 2
    broken = {
        "a": {"qweight": good["qweight"]},
        "b": good | {"scales": good["scales"][:1]},
        "c": good | {"g_idx": far},
        "d": good | {"scales": good["scales"].astype(np.float64)},
        "e": {"scales": good["scales"]},
        "f": pack(normal(16, 64), Recipe("gptq", bits=8))[0],
        "g": good | {"weight": np.zeros((16, 64), np.float16)},
    }
    tensors = {f"x.{module}.{name}": part for module, parts in broken.items() for name, part in parts.items()}
    with pytest.raises(SourceError) as caught:
        open_model(str(folder(tmp_path, tensors, GPTQ)))
    said = str(caught.value)
    for part in (
        "gptq, 4 bits with group_size 32",
        "7 problems",
        "x.a: there is no scales, there is no qzeros",
        "x.b: ",
        "scales [1, 16]",
        "x.c: g_idx names groups 0 to 2, and there are 0 to 1",
        "x.d: scales is DOUBLE",
        "x.e: there is no qweight, there is no qzeros",
        "x.f: ",
        "fit no such grid",
        "x.g has both x.g.weight and packed tensors",
        "Check that the configuration belongs",
    ):
        assert part in said


@pytest.mark.parametrize(
    "spoil",
    [
        {"g_idx": np.full(64, -1, np.int32)},
        {"g_idx": np.zeros((8, 8), np.int32)},
        {"g_idx": np.zeros(10**6, np.int32)},
        {"qweight": np.zeros((0, 16), np.int32)},
        {"qweight": np.zeros((8, 0), np.int32)},
        {"qweight": np.zeros(128, np.int32)},
        {"qzeros": np.zeros((2, 1), np.int32)},
        {"scales": np.zeros((2, 16), np.int32)},
        {"qweight": np.zeros((8, 16), np.int16)},
    ],
    ids=lambda spoil: f"{(k := next(iter(spoil)))}-{spoil[k].dtype}-{list(spoil[k].shape)}",
)
def test_hostile_tensors_end_in_one_paragraph(tmp_path, spoil):
    good, _ = pack(normal(16, 64), Recipe("gptq"))
    with pytest.raises(SourceError, match=f"{MODULE}"):
        open_model(str(folder(tmp_path, good | spoil, GPTQ)))


@pytest.mark.parametrize("shape", [[2**40, 2**40], [0, 64], [-16, -64], [16], [16, 64, 1]])
def test_a_lying_weight_shape_is_caught(tmp_path, shape):
    good, _ = pack(normal(16, 64), Recipe("pack-quantized"))
    with pytest.raises(SourceError, match="fit no such grid"):
        open_model(str(folder(tmp_path, good | {"weight_shape": np.array(shape)}, PACKED)))


def test_a_group_larger_than_any_matrix_is_the_whole_row(tmp_path):
    tensors, values = pack(normal(16, 64), Recipe("gptq", group=-1))
    path = folder(tmp_path, tensors, GPTQ | {"group_size": 10**30})
    np.testing.assert_array_equal(opened(path).numpy(), values)


def test_a_configuration_that_is_no_object_is_named(tmp_path):
    with pytest.raises(SourceError, match="quantization_config is 'gptq'; an object was needed"):
        open_model(str(folder(tmp_path, {"a.weight": np.zeros((4, 4), np.float32)}, "gptq")))


def test_a_configuration_whose_weights_are_not_packed_is_named(tmp_path):
    weights = {f"{MODULE}.weight": np.zeros((4, 4), np.float32)}
    with pytest.raises(SourceError, match="no tensor is named qweight or scales or qzeros or g_idx"):
        open_model(str(folder(tmp_path, weights, GPTQ)))


def test_nothing_large_is_read_before_it_is_asked_for(tmp_path):
    tensors, _ = pack(normal(16, 64), Recipe("gptq"))
    weight = opened(folder(tmp_path, tensors, GPTQ))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match="changed while it was in use"):
        weight.numpy()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_is_whole_whatever_files_its_tensors_are_in(tmp_path, tiny_torch, shards):
    model = tiny_torch("qwen2", None, **SIZES)
    values = write(tmp_path, model, Recipe("gptq"), shards=shards, keep=("o_proj",))
    source = open_model(str(tmp_path))
    assert "quantization_config" not in source.config
    assert source.weights.keys() == values.keys() == model.state_dict().keys()
    for name, tensor in source.weights.items():
        np.testing.assert_array_equal(tensor.numpy().astype(np.float32), values[name])
    kept = [name for name, tensor in source.weights.items() if STORED_BLOCKS in tensor.meta]
    assert len(kept) == 2 * 6, "all projections of two layers but o_proj"


def test_gpt2_has_its_weights_the_other_way_round(tmp_path, tiny_torch):
    model = tiny_torch("gpt2", None, n_layer=1)
    stored, values = {}, {}
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 2 and ".h." in name:
            packed, turned = pack(tensor.numpy().T, Recipe("gptq"))
            values[name] = turned.T
            stored |= {f"{name.removesuffix('.weight')}.{last}": part for last, part in packed.items()}
        elif name != "lm_head.weight":
            stored[name] = tensor.numpy()
    save_file(stored, tmp_path / "model.safetensors")
    config = model.config.to_dict() | {"quantization_config": Recipe("gptq").config()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = open_model(str(tmp_path)).weights
    assert len(values) == 4
    for name, expected in values.items():
        np.testing.assert_array_equal(weights[name].numpy(), expected)
        assert weights[name].meta[STORED_BLOCKS_TURNED].read()[0].shape == expected.T.shape


def test_the_packer_of_these_tests_packs_the_lowest_bits_first():
    assert words(np.array([[1, 2, 3, 4, 5, 6, 7, 8]]), 4)[0, 0] == np.uint32(0x87654321).view(np.int32)
    interleaved = words(np.array([[1, 2, 3, 4, 5, 6, 7, 8]]), 4, (0, 2, 4, 6, 1, 3, 5, 7))
    assert interleaved[0, 0] == np.uint32(0x86427531).view(np.int32)
