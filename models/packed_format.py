"""What ``quantization_config`` says about packed weights: which layout, how many bits, which groups.

Three methods are read: ``gptq`` (AutoGPTQ, GPTQModel), ``awq`` (AutoAWQ's GEMM layout) and
``compressed-tensors`` (``pack-quantized``). Everything else is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.source import Json


class Layout(StrEnum):
    """How the tensors of a packed matrix are laid out."""

    GPTQ = "gptq"
    """``qweight`` int32 [K * bits / 32, N], ``qzeros`` with zero points less one, ``scales``, ``g_idx``."""
    GPTQ_V2 = "gptq_v2"
    """The same with the zero points themselves."""
    AWQ = "gemm"
    """``qweight`` int32 [K, N / 8], ``qzeros``, ``scales``, eight neighbours interleaved in each word."""
    PACKED = "pack-quantized"
    """``weight_packed`` int32 [N, K * bits / 32], ``weight_scale``, ``weight_zero_point`` and so on."""


@dataclass(frozen=True)
class Grid:
    """One of the forms that matrices of a checkpoint have."""

    bits: int
    group: int
    """Elements along K that share a scale; -1 for the whole row."""
    zeros: bool = True
    """Whether zero points are stored."""

    def __str__(self) -> str:
        return f"{self.bits} bits with group_size {self.group}{'' if self.zeros else ', symmetric'}"


@dataclass(frozen=True)
class PackedFormat:
    """The layout of all packed matrices of a checkpoint, and the grids they may have."""

    layout: Layout
    grids: tuple[Grid, ...]


_READ = (
    "Read: gptq (4 or 8 bits), awq (gemm layout) and compressed-tensors (pack-quantized). Give one of those, "
    "the full-precision model, or a GGUF file of it."
)
_ADVICE = (
    "transformers can write the model in full precision: from_pretrained(...), model.dequantize(), "
    "save_pretrained(...)."
)
_DEQUANTIZE = MappingProxyType(
    {"bitsandbytes": _ADVICE} | dict.fromkeys(("fp8", "mxfp4", "fbgemm_fp8"), _ADVICE)
)
"""What helps beside another file, by method."""


def packed_format(config: Mapping[str, Json], where: str) -> PackedFormat:
    """The format that ``config``, the object under ``quantization_config``, describes.

    Raises:
        UnsupportedModel: a method, layout or number of bits that is not read; all objections at once.
    """
    method = config.get("quant_method")
    readers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    if not isinstance(method, str) or method not in readers:
        told = f"stores its weights by {method!r}" if method else "has a quantization_config, no quant_method"
        advice = _DEQUANTIZE.get(str(method), "")
        raise UnsupportedModel(f"{where} {told}, which is not read. {_READ}{' ' * bool(advice)}{advice}")
    problems: list[str] = []
    found = readers[method](config, problems)
    for grid in found.grids if not problems else ():
        if found.layout is Layout.AWQ and grid.bits != 4:
            problems.append(f"awq with {grid.bits} bits has no layout; 4 is read")
        elif grid.bits not in (4, 8):
            problems.append(f"weights of {grid.bits} bits are not read; 4 and 8 are")
        if grid.group < 1 and grid.group != -1:
            problems.append(f"group_size {grid.group} is not possible; it is -1 or at least 1")
    if problems:
        raise UnsupportedModel(f"{where}: {'; '.join(dict.fromkeys(problems))}. {_READ}")
    return found


def _gptq(config: Mapping[str, Json], problems: list[str]) -> PackedFormat:
    """Source: GPTQModel's and AutoGPTQ's ``quantize_config``."""
    layout = _layout(config, ("checkpoint_format", "format"), "gptq", (Layout.GPTQ, Layout.GPTQ_V2), problems)
    if config.get("is_marlin_format"):
        problems.append("is_marlin_format: Marlin's layout is not read")
    base = Grid(_number(config, ("bits",), problems), _number(config, ("group_size",), problems, 128))
    grids = [base]
    special = config.get("dynamic") or {}  # regular expressions of module names to what differs there
    for pattern, override in special.items() if isinstance(special, dict) else ():
        if isinstance(override, dict) and not pattern.startswith("-:"):
            bits = _number(override, ("bits",), problems, base.bits)
            grids.append(Grid(bits, _number(override, ("group_size",), problems, base.group)))
    return PackedFormat(layout, tuple(dict.fromkeys(grids)))


def _awq(config: Mapping[str, Json], problems: list[str]) -> PackedFormat:
    """Source: AutoAWQ's ``quant_config``, under its own names and those that transformers gives them."""
    keys = ("version", "format", "checkpoint_format")
    layout = _layout(config, keys, "gemm", (Layout.AWQ,), problems)
    bits = _number(config, ("bits", "w_bit"), problems, 4)
    return PackedFormat(layout, (Grid(bits, _number(config, ("group_size", "q_group_size"), problems, 128)),))


def _compressed(config: Mapping[str, Json], problems: list[str]) -> PackedFormat:
    """Source: compressed-tensors' ``QuantizationConfig``, ``QuantizationScheme`` and ``QuantizationArgs``."""
    layout = _layout(config, ("format",), "pack-quantized", (Layout.PACKED,), problems)
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            problems.append(f"it has a {key}, which would be lost")
    sparsity = config.get("sparsity_config")
    if isinstance(sparsity, dict) and sparsity.get("format", "dense") != "dense":
        problems.append(f"its sparsity format {sparsity['format']!r} is not read")
    grids = []
    groups = config.get("config_groups")
    for name, group in groups.items() if isinstance(groups, dict) else ():
        scheme = group if isinstance(group, dict) else {}
        _layout(scheme, ("format",), "pack-quantized", (Layout.PACKED,), problems)
        for key in ("input_activations", "output_activations"):
            if scheme.get(key):
                problems.append(f"{name} quantizes {key}, not weights alone")
        weights = scheme.get("weights")
        if not isinstance(weights, dict) or weights.get("type", "int") != "int":
            kind = weights.get("type") if isinstance(weights, dict) else None
            problems.append(f"the weights of {name} are of type {kind!r}, not integers")
            continue
        strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "channel")
        if strategy not in ("group", "channel"):
            problems.append(f"the strategy of {name} is {strategy!r}; group and channel are read")
        size = _number(weights, ("group_size",), problems) if strategy == "group" else -1
        bits = _number(weights, ("num_bits",), problems, 8)
        grids.append(Grid(bits, size, zeros=weights.get("symmetric", True) is False))
    if not grids and not problems:
        problems.append("its config_groups describe no weights")
    return PackedFormat(layout, tuple(dict.fromkeys(grids)))


def _layout(
    config: Mapping[str, Json],
    keys: tuple[str, ...],
    default: str,
    read: tuple[Layout, ...],
    problems: list[str],
) -> Layout:
    """The layout under those of ``keys`` that are there, which must agree."""
    said = {key: config[key] for key in keys if config.get(key) is not None} or {keys[0]: default}
    names = {key: value.lower() if isinstance(value, str) else value for key, value in said.items()}
    if len({str(name) for name in names.values()}) > 1:
        problems.append(f"two layouts are named: {', '.join(f'{k} {v!r}' for k, v in said.items())}")
    for key, name in names.items():
        if name not in list(read):
            problems.append(f"{key} {said[key]!r} is not read; {' and '.join(read)} {_verb(read)}")
    first = next(iter(names.values()))
    return next((layout for layout in read if layout == first), read[0])


def _verb(read: tuple[Layout, ...]) -> str:
    return "is" if len(read) == 1 else "are"


def _number(
    config: Mapping[str, Json], keys: tuple[str, ...], problems: list[str], default: int | None = None
) -> int:
    """The whole number under the first of ``keys`` that is there, or ``default``; notes what is wrong."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if value is not None:
            problems.append(f"{key} is {value!r}, not a whole number")
            return -1
    if default is None:
        problems.append(f"{keys[0]} is missing")
        return -1
    return default
