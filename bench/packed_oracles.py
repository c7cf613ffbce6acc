"""Packed checkpoints held against the programs that define their formats, matrix by matrix, bit for bit.

    python bench/packed_oracles.py [--fixture FOLDER]

Needs an environment of its own, with onnxforge and, each optional and all without their dependencies:

    pip install --no-deps compressed-tensors autoawq auto-gptq
    pip install --no-deps accelerate loguru pypcre logbar tokenicer device-smi threadpoolctl defuser

and GPTQModel's source distribution, unpacked, on PYTHONPATH. Each program packs a seeded matrix, and says
what it stands for; we read the same tensors from a folder. Its answer is in float16 where its scales are,
ours in float32, so that ours is rounded for the comparison, and the codes are compared as they are.
``--fixture`` writes the tensors, and a digest of the answers, for `tests/models`. Last, small seeded models
that the tests' own packer wrote are read by us, and by transformers with these programs' kernels.
"""

import argparse
import copy
import hashlib
import importlib
import importlib.util
import json
import sys
import tempfile
import types
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from record import record
from safetensors.torch import save_file

from onnxforge.models.hf_folder import open_folder
from onnxforge.models.stored_blocks import STORED_BLOCKS, ZERO

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

from packed_checkpoints import Recipe, write

NAME = "model.layers.0.self_attn.q_proj"
ROWS, COLUMNS = 32, 256
SMALL = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
RECIPES = (
    Recipe("gptq", group=32),
    Recipe("gptq", group=64, symmetric=True),
    Recipe("gptq_v2", group=32, shuffled=True),
    Recipe("gptq", bits=8, group=32),
    Recipe("awq", group=32),
    Recipe("awq", group=64),
    Recipe("pack-quantized", group=32, symmetric=True),
    Recipe("pack-quantized", group=32),
    Recipe("pack-quantized", bits=8, group=-1),
)


@dataclass(frozen=True)
class Packed:
    """One matrix as a program packs it."""

    program: str
    config: dict[str, object]
    tensors: dict[str, torch.Tensor]
    """By the last component of their names."""
    values: torch.Tensor
    """What the program says they stand for, [N, K]."""

    @property
    def title(self) -> str:
        """The method and what is particular about it."""
        facts = {key: value for key, value in self.config.items() if not isinstance(value, dict)}
        groups = self.config.get("config_groups")
        if isinstance(groups, dict):
            facts |= groups["group_0"]["weights"]
        return " ".join(
            str(value) if key == "quant_method" else f"{key}={value}" for key, value in facts.items()
        )


def grid(
    weight: torch.Tensor, bits: int, groups: torch.Tensor, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of float16 and zero points, both [N, groups], as a rounding to nearest would choose them."""
    count, top = int(groups.max()) + 1, 2**bits - 1
    scales, zeros = [], []
    for index in range(count):
        part = weight[:, groups == index]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if symmetric:
            high = torch.maximum(high, -low)
            low = -high
        scale = ((high - low) / top).half().float()
        scales.append(scale)
        middle = torch.full_like(scale, 2 ** (bits - 1))
        zeros.append(middle if symmetric else torch.round(-low / scale).clamp(0, top))
    return torch.stack(scales, 1), torch.stack(zeros, 1)


def linear() -> torch.nn.Linear:
    torch.manual_seed(3)
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=True)
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.2, 3, ROWS)[:, None]).add_(0.01)
        layer.weight[0] = layer.weight[0].abs()  # no negative number: a zero point of 0
    return layer


def order(group: int, *, shuffled: bool) -> torch.Tensor:
    plain = torch.arange(COLUMNS) // (group if group > 0 else COLUMNS)
    return plain[torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))] if shuffled else plain


def gptqmodel() -> list[Packed]:
    kernel = importlib.import_module("gptqmodel.nn_modules.qlinear.torch").TorchLinear
    model = importlib.import_module("gptqmodel.utils.model")
    settings = importlib.import_module("gptqmodel.quantization.config").QuantizeConfig
    made = []
    for bits, group, symmetric, shuffled, version in (
        (4, 128, True, False, "gptq"),
        (4, 64, False, False, "gptq"),
        (4, 32, False, True, "gptq_v2"),
        (4, -1, False, False, "gptq_v2"),
        (4, 128, True, True, "gptq"),
        (8, 64, True, False, "gptq"),
        (8, 32, False, False, "gptq"),
    ):
        layer, groups = linear(), order(group, shuffled=shuffled)
        scales, zeros = grid(layer.weight.data, bits, groups, symmetric=symmetric)
        module = kernel(
            bits=bits,
            group_size=group,
            sym=symmetric,
            desc_act=shuffled,
            in_features=COLUMNS,
            out_features=ROWS,
            bias=True,
            pack_dtype=torch.int32,
            register_buffers=True,
        )
        module.pack_original(layer, scales, zeros, groups.to(torch.int32))
        module.qzero_format(format=2)
        module.post_init()
        values = module.dequantize_weight().T.contiguous()
        if version == "gptq":
            model.convert_gptq_v2_to_v1_format_module(module, settings(bits=bits))
        names = ("qweight", "qzeros", "scales", "g_idx", "bias")
        tensors = {name: getattr(module, name).detach().clone() for name in names}
        config = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "sym": symmetric,
            "desc_act": shuffled,
            "checkpoint_format": version,
        }
        made.append(Packed("gptqmodel", config, tensors, values))
    return made


def autogptq() -> list[Packed]:
    """Its plain-torch kernel, loaded by itself: the package asks for an old transformers."""
    kernel = _file("auto_gptq", "nn_modules/qlinear/qlinear_cuda_old.py").QuantLinear
    made = []
    for bits, group, symmetric in ((4, 128, True), (4, 32, False), (8, 64, True)):
        layer, groups = linear(), order(group, shuffled=False)
        if not symmetric:
            layer.weight.data[0] *= -1  # its packer spoils the neighbours of a zero point of 0
        scales, zeros = grid(layer.weight.data, bits, groups, symmetric=symmetric)
        module = kernel(bits, group, COLUMNS, ROWS, True)
        module.pack(layer.half(), scales.half(), zeros, None)
        names = ("qweight", "qzeros", "scales", "g_idx", "bias")
        tensors = {name: getattr(module, name).detach().clone() for name in names}
        module.scales, module.bias = module.scales.float(), None  # it multiplies in the type of its scales
        values = module(torch.eye(COLUMNS)).T.contiguous()
        config = {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": symmetric}
        made.append(Packed("auto-gptq", config, tensors, values))
    return made


def autoawq() -> list[Packed]:
    place = _place("awq")
    for name in ("awq", "awq.utils", "awq.modules"):  # not their __init__, which asks for an old transformers
        package = types.ModuleType(name)
        package.__path__ = [str(place.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    unpack = importlib.import_module("awq.utils.packing_utils").dequantize_gemm
    kernel = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
    made = []
    for group in (32, 64, 128, -1):
        layer, groups = linear(), order(group, shuffled=False)
        scales, zeros = grid(layer.weight.data, 4, groups, symmetric=False)
        size = group if group > 0 else COLUMNS
        module = kernel.from_linear(layer, 4, size, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        values = unpack(module.qweight, module.qzeros, module.scales, 4, size).T.contiguous()
        tensors = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales", "bias")}
        config = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": group,
            "version": "gemm",
            "zero_point": True,
        }
        made.append(Packed("autoawq", config, tensors, values))
    return made


def compressed_tensors() -> list[Packed]:
    packer = importlib.import_module("compressed_tensors.compressors.pack_quantized")
    quantization = importlib.import_module("compressed_tensors.quantization")
    made = []
    for bits, group, symmetric in (
        (4, 128, True),
        (4, 32, False),
        (8, 64, True),
        (8, -1, False),
        (4, -1, True),
    ):
        layer, groups = linear(), order(group, shuffled=False)
        scales, zeros = grid(layer.weight.data, bits, groups, symmetric=symmetric)
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": symmetric,
            "strategy": "group" if group > 0 else "channel",
            "group_size": group if group > 0 else None,
        }
        scheme = quantization.QuantizationScheme(
            targets=["Linear"], weights=quantization.QuantizationArgs(**weights)
        )
        state = {"weight": layer.weight.data.half(), "weight_scale": scales.half()}
        state["weight_zero_point"] = (zeros - 2 ** (bits - 1)).to(torch.int8)
        compressor = packer.PackedQuantizationCompressor
        tensors = compressor.compress(state, scheme)
        values = compressor.decompress(tensors, scheme)["weight"]
        config = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
        made.append(Packed("compressed-tensors", config, tensors, values))
    return made


def compared(packed: Packed) -> tuple[int, int, str]:
    """Values that differ from the program's, values that its codes decode to differently, and the form."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        (folder / "config.json").write_text(
            json.dumps({"model_type": "llama", "quantization_config": packed.config})
        )
        tensors = {f"{NAME}.{name}": tensor.contiguous() for name, tensor in packed.tensors.items()}
        save_file(tensors, folder / "model.safetensors")
        weight = open_folder(folder, "packed").weights[f"{NAME}.weight"]
        ours, blocks = weight.numpy(), weight.meta[STORED_BLOCKS]
        told = packed.values.detach()
        rounded = torch.from_numpy(ours).to(told.dtype)
        bits, block, origin = blocks.form
        codes, steps, zeros = blocks.read()
        centre = zeros.repeat(block, 1).astype(np.float32) if origin == ZERO else 2.0 ** (bits - 1)
        decoded = (codes - np.float32(centre)) * steps.repeat(block, 1)
        expected = ours if blocks.order is None else ours[:, blocks.order]
        form = f"{bits} bits, {block}, {origin}{'' if blocks.order is None else ', reordered'}"
        return int((rounded != told).sum()), int((decoded != expected).sum()), form


def whole_models() -> list[tuple[str, str, str]]:
    """What transformers says of packed checkpoints, beside the same model over the weights that we read."""
    import transformers

    rows = []
    for kind, stem in (("llama", "Llama"), ("qwen2", "Qwen2")):
        config = getattr(transformers, f"{stem}Config")(**SMALL)
        torch.manual_seed(20)
        model = getattr(transformers, f"{stem}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.15) if parameter.dim() > 1 else parameter.add_(0.1)
        for recipe in RECIPES:
            with tempfile.TemporaryDirectory() as temp:
                write(Path(temp), model, recipe)
                weights = open_folder(Path(temp), kind).weights
                whole = transformers.CompressedTensorsConfig(run_compressed=False)
                special = {"quantization_config": whole} if recipe.method == "pack-quantized" else {}
                theirs = transformers.AutoModelForCausalLM.from_pretrained(
                    temp, dtype=torch.float16, device_map="cpu", **special
                )
                ours = {name: torch.tensor(item.numpy().astype(np.float32)) for name, item in weights.items()}
            mine = copy.deepcopy(model)
            mine.load_state_dict(ours)
            ids = torch.arange(3, 23)[None]
            with torch.no_grad():
                told, got = theirs(ids).logits.float(), mine(ids).logits
            kernel = type(theirs.model.layers[0].mlp.down_proj).__name__
            rows.append((f"{kind}, {recipe.title}", kernel, f"{float((told - got).norm() / got.norm()):.1e}"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fixture", type=Path)
    asked = parser.parse_args()
    programs: dict[str, Callable[[], list[Packed]]] = {
        "gptqmodel": gptqmodel,
        "auto-gptq": autogptq,
        "autoawq": autoawq,
        "compressed-tensors": compressed_tensors,
    }
    made: list[Packed] = []
    for name, program in programs.items():
        try:
            made += program()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    rows, wrong = [], 0
    for packed in made:
        values, codes, form = compared(packed)
        wrong += values + codes
        rows.append((packed.program, packed.title, form, str(values), str(codes)))
        if asked.fixture:
            _keep(asked.fixture, packed, len(rows))
    models = whole_models()
    wrong += sum(float(error) > 5e-3 for *_, error in models)
    versions = {name: _version(name) for name in dict.fromkeys(packed.program for packed in made)}
    record(
        "packed_oracles",
        f"Packed {ROWS} x {COLUMNS} matrices against the programs that packed them",
        {"versions_of_programs": versions, "rows": rows, "models": models},
        ("program", "format", "blocks", "values that differ", "codes that differ"),
        rows,
        [
            f"{', '.join(f'{name} {version}' for name, version in versions.items())}.",
            "Logits of transformers in float16 against ours, relative:",
            *(f"{title} ({kernel}): {error}" for title, kernel, error in models),
        ],
    )
    return 1 if wrong or not made else 0


def _keep(folder: Path, packed: Packed, number: int) -> None:
    folder.mkdir(exist_ok=True)
    tensors = {f"{NAME}.{name}": tensor.contiguous() for name, tensor in packed.tensors.items()}
    answer = hashlib.sha256(packed.values.detach().contiguous().numpy().tobytes()).hexdigest()
    told = {
        "program": f"{packed.program} {_version(packed.program)}",
        "config": json.dumps(packed.config),
        "dtype": str(packed.values.dtype).removeprefix("torch."),
        "sha256": answer,
    }
    save_file(tensors, folder / f"{number:02}-{packed.program}.safetensors", metadata=told)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "from source"


def _place(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"no package {package}")
    return Path(found.submodule_search_locations[0])


def _file(package: str, path: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{package}_alone", _place(package) / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    raise SystemExit(main())
