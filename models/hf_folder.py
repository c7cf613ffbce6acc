"""A Hugging Face model folder: ``config.json``, safetensors weights (also packed), tokenizer files."""

from pathlib import Path

import onnx_ir as ir

from onnxforge.models.errors import SourceError
from onnxforge.models.files import JSON_LIMIT, contained, parse_object, read_plain, sha256
from onnxforge.models.packed_format import packed_format
from onnxforge.models.packed_weights import CODES, unpacked
from onnxforge.models.safetensors_file import read_safetensors
from onnxforge.models.sidecars import sidecar_files, without_code
from onnxforge.models.source import Json, Source, SourceKind

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
"""Formats that run code when they are read."""
PACKING = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
"""Files that AutoGPTQ and AutoAWQ wrote beside ``config.json``, and the method that each stands for."""
_PACKING_KEYS = ("quantization_config", "compression_config")
_TURNED_FAMILIES = ("gpt2",)
"""Families whose linear layers hold their weights as [in, out]."""
NO_PICKLES = (
    "Pickles are not read, because reading one runs code. Convert the weights to safetensors first "
    "(transformers: model.save_pretrained(folder, safe_serialization=True)), in an environment you can lose"
)


def open_folder(folder: Path, ref: str) -> Source:
    """Read a model folder, which may be a snapshot in the hub cache. Weights keep their stored dtype.

    Packed matrices (GPTQ, AWQ, compressed-tensors) become lazy float32 weights that carry their codes, and
    ``quantization_config`` is then gone from the configuration.

    Raises:
        SourceError: names everything that is wrong with the folder at once: no config, missing or
            truncated shards, weights only as pickles, files that lead outside, packed weights that do not
            fit.
        UnsupportedModel: see :func:`~onnxforge.models.sidecars.sidecar_files` and
            :func:`~onnxforge.models.packed_format.packed_format`.
    """
    problems: list[str] = []
    config = _config(folder, problems)
    names = _weight_files(folder, problems)
    weights: dict[str, ir.TensorProtocol] = {}
    for name, expected in names.items():
        weights |= _shard(folder, name, expected, problems)
    sidecars = sidecar_files(folder, problems)
    if problems:
        raise SourceError.listing(f"{folder} cannot be compiled", problems, "Fetch the model again.")
    config, weights = _plain(folder, config, weights)
    read = dict.fromkeys(("config.json", INDEX, *PACKING, *names, *sidecars))
    present = [name for name in read if (folder / name).exists()]
    return Source(
        ref=ref,
        kind=SourceKind.FOLDER,
        config=config,
        weights=weights,
        sidecars=sidecars,
        digests={name: sha256(contained(folder, name)) for name in present},
    )


def _plain(
    folder: Path, config: dict[str, Json], weights: dict[str, ir.TensorProtocol]
) -> tuple[dict[str, Json], dict[str, ir.TensorProtocol]]:
    """Without packed matrices, and without what the configuration says of them.

    Older packers wrote that into a file of its own, which counts where ``config.json`` says nothing.
    """
    place, told = "config.json", config.get("quantization_config") or config.get("compression_config")
    for name, method in PACKING.items():
        if told is None and (folder / name).exists():
            data = read_plain(contained(folder, name), JSON_LIMIT)
            place, told = name, {"quant_method": method, **parse_object(data, str(folder / name))}
    if told and not isinstance(told, dict):
        raise SourceError(f"{folder / place}: quantization_config is {told!r}; an object was needed.")
    if isinstance(told, dict):
        turned = config.get("model_type") in _TURNED_FAMILIES
        packed = packed_format(told, str(folder / place))
        weights = unpacked(weights, packed, str(folder / place), turned=turned)
    elif codes := [name for name in weights if name.rpartition(".")[2] in CODES]:
        raise SourceError(
            f"{folder} holds packed weights ({codes[0]!r} is the first of {len(codes)}), and config.json has "
            "no quantization_config that says how they are packed. Fetch the model's own config.json."
        )
    kept = {key: value for key, value in config.items() if key not in _PACKING_KEYS}
    return kept, weights


def read_config(folder: Path) -> dict[str, Json]:
    """``config.json`` without the keys that name code.

    Raises:
        SourceError: missing, not JSON, or without ``model_type``.
    """
    config = parse_object(
        read_plain(contained(folder, "config.json"), JSON_LIMIT), str(folder / "config.json")
    )
    if not isinstance(config.get("model_type"), str):
        raise SourceError(
            f"{folder / 'config.json'} names no model_type, so the model's family is not known."
        )
    return without_code(config)


def _config(folder: Path, problems: list[str]) -> dict[str, Json]:
    try:
        return read_config(folder)
    except SourceError as error:
        problems.append(str(error))
        return {}


def _weight_files(folder: Path, problems: list[str]) -> dict[str, frozenset[str]]:
    """Weight files by name, with the tensors that the index expects in each (none without an index)."""
    if (folder / WEIGHTS).exists():
        return {WEIGHTS: frozenset()}
    if (folder / INDEX).exists():
        return _indexed(folder, problems)
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        problems.append(f"weights exist only as pickles ({', '.join(pickles)}). {NO_PICKLES}")
    else:
        problems.append(f"neither {WEIGHTS} nor {INDEX} is there")
    return {}


def _indexed(folder: Path, problems: list[str]) -> dict[str, frozenset[str]]:
    try:
        index = parse_object(read_plain(contained(folder, INDEX), JSON_LIMIT), str(folder / INDEX))
    except SourceError as error:
        problems.append(str(error))
        return {}
    table = index.get("weight_map")
    shards: dict[str, set[str]] = {}
    for tensor, shard in (table if isinstance(table, dict) else {}).items():
        if isinstance(shard, str) and shard == Path(shard).name and shard.endswith(".safetensors"):
            shards.setdefault(shard, set()).add(tensor)
        else:
            problems.append(
                f"{INDEX} puts tensor {tensor!r} into {shard!r}, which is no safetensors file name"
            )
    if not shards:
        problems.append(f"{INDEX} lists no weights")
    return {shard: frozenset(tensors) for shard, tensors in sorted(shards.items())}


def _shard(
    folder: Path, name: str, expected: frozenset[str], problems: list[str]
) -> dict[str, ir.LazyTensor]:
    try:
        tensors = read_safetensors(contained(folder, name))
    except SourceError as error:
        problems.append(str(error))
        return {}
    missing = sorted(expected - tensors.keys())
    if missing:
        problems.append(
            f"{name} lacks {len(missing)} tensors that the index puts there, the first is {missing[0]!r}"
        )
    return {tensor: value for tensor, value in tensors.items() if not expected or tensor in expected}
