"""Checkpoints of GPTQ, AWQ and compressed-tensors from float weights, packed word by word as the formats say.

Written for the tests, from the formats' descriptions, and sharing nothing with the code that reads them.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Recipe:
    """How matrices are packed."""

    method: str
    """``gptq``, ``gptq_v2``, ``awq`` or ``pack-quantized``."""
    bits: int = 4
    group: int = 32
    symmetric: bool = False
    shuffled: bool = False
    """Groups of columns far apart, as GPTQ with ``desc_act`` makes them."""
    scales: str = "float16"

    @property
    def title(self) -> str:
        """The recipe in a few words."""
        special = [word for word in ("symmetric", "shuffled") if getattr(self, word)]
        return ", ".join([self.method, f"{self.bits} bits", f"groups of {self.group}", *special])

    def config(self) -> dict:
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm"}
        if self.method == "pack-quantized":
            weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
            weights |= {"strategy": "group", "group_size": self.group}
            if self.group == -1:
                weights |= {"strategy": "channel", "group_size": None}
            return {
                "quant_method": "compressed-tensors",
                "format": "pack-quantized",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
                "ignore": ["lm_head"],
            }
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": self.shuffled,
            "checkpoint_format": self.method,
        }


def words(codes: np.ndarray, bits: int, places: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [rows, columns * bits / 32]: bit field ``i`` of a word holds its column ``places[i]``."""
    each = 32 // bits
    columns = -(-codes.shape[1] // each) * each
    padded = np.zeros((codes.shape[0], columns), np.uint32)
    padded[:, : codes.shape[1]] = codes
    packed = np.zeros((codes.shape[0], columns // each), np.uint32)
    for field, place in enumerate(places or range(each)):
        packed |= padded[:, place::each] << np.uint32(bits * field)
    return packed.view(np.int32)


@dataclass(frozen=True)
class Rounded:
    """A weight [N, K] as codes [N, K], scales and zero points [N, groups], and the group of each column."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray
    index: np.ndarray

    def values(self) -> np.ndarray:
        """float32 [N, K]: what they stand for."""
        whole = self.codes - self.zeros[:, self.index]
        return (whole * self.scales[:, self.index].astype(np.float64)).astype(np.float32)


def pack(weight: np.ndarray, recipe: Recipe, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors by the last component of their names, and the float32 values [N, K] that they stand for."""
    made = rounded(weight, recipe, seed)
    return _tensors(made.codes, made.scales, made.zeros, made.index, recipe), made.values()


def rounded(weight: np.ndarray, recipe: Recipe, seed: int = 0) -> Rounded:
    """``weight`` on the grids of ``recipe``, to the nearest value; ``seed`` shuffles columns."""
    count, width = weight.shape
    top = (1 << recipe.bits) - 1
    index = np.arange(width) // (recipe.group if recipe.group > 0 else width)
    if recipe.shuffled:
        index = np.random.default_rng(seed).permutation(index)
    groups = index.max() + 1
    scales, zeros = np.empty((count, groups), np.float32), np.empty((count, groups), np.int64)
    kind = np.dtype(ml_dtypes.bfloat16) if recipe.scales == "bfloat16" else np.dtype(recipe.scales)
    for group in range(groups):
        part = weight[:, index == group]
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if recipe.symmetric:
            high = np.maximum(high, -low)
            low = -high
        scales[:, group] = ((high - low) / top).astype(kind)
        zeros[:, group] = 1 << (recipe.bits - 1) if recipe.symmetric else np.rint(-low / scales[:, group])
    zeros = zeros.clip(0, top)
    codes = np.rint(weight / scales[:, index] + zeros[:, index]).clip(0, top).astype(np.int64)
    return Rounded(codes, scales.astype(kind), zeros, index)


def _tensors(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, index: np.ndarray, recipe: Recipe
) -> dict[str, np.ndarray]:
    bits = recipe.bits
    if recipe.method == "awq":
        packed = {"qweight": words(codes.T, bits, AWQ_COLUMNS), "qzeros": words(zeros.T, bits, AWQ_COLUMNS)}
        return {**packed, "scales": np.ascontiguousarray(scales.T)}
    if recipe.method == "pack-quantized":
        tensors = {"weight_packed": words(codes, bits), "weight_scale": scales}
        tensors["weight_shape"] = np.array(codes.shape, np.int64)
        if not recipe.symmetric:
            tensors["weight_zero_point"] = np.ascontiguousarray(words(zeros.T, bits).T)
        if recipe.shuffled:
            tensors["weight_g_idx"] = index.astype(np.int32)
        return tensors
    packed = words(zeros.T, bits)
    if recipe.method == "gptq":
        one = sum(1 << shift for shift in range(0, 32, bits))
        packed = (packed.view(np.uint32) - np.uint32(one)).view(np.int32)
    return {
        "qweight": np.ascontiguousarray(words(codes, bits).T),
        "qzeros": packed,
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": index.astype(np.int32),
    }


def write(
    folder: Path, model, recipe: Recipe, *, shards: int = 1, keep: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The checkpoint of a torch model whose layers' matrices are packed; all its values, exactly.

    ``keep`` names projections that stay float (``modules_to_not_convert``).
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, np.ndarray] = {}
    values: dict[str, np.ndarray] = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        module = name.removesuffix(".weight")
        if array.ndim == 2 and ".layers." in name and not any(word in name for word in keep):
            # A transformer's q, k and v read the same activations, and so are reordered alike.
            packed, values[name] = pack(array, recipe, seed=array.shape[1])
            stored |= {f"{module}.{last}": part for last, part in packed.items()}
        else:
            stored[name] = array.astype(np.float16)
            values[name] = stored[name].astype(np.float32)
    config = model.config.to_dict() | {"quantization_config": recipe.config()}
    (folder / "config.json").write_text(json.dumps(config))
    _save(folder, stored, shards)
    return values


def _save(folder: Path, stored: dict[str, np.ndarray], shards: int) -> None:
    stored = {name: np.ascontiguousarray(array) for name, array in stored.items()}
    if shards == 1:
        save_file(stored, folder / "model.safetensors")
        return
    table = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(sorted(stored.items())[number::shards])  # tensors of one matrix in several files
        save_file(part, folder / file)
        table |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
