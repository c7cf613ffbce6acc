"""Weights that come quantized, at full size: are the artifact's codes the source's, and is anything lost?

    python bench/stored_blocks.py [--windows 8]

First the demo GGUF, tensor by tensor: what its codes decode to, what our float weights are, and what `gguf`
itself says. Then its weights once more, rounded to GPTQ and AWQ checkpoints (by the packer of the tests),
each compiled for `cpu-fp32` and `cpu-int4`: the perplexity of the codes beside that of their values.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from record import record
from safetensors.numpy import save_file
from weight_methods import Remembered, docstrings

from onnxforge.compiler.build import build
from onnxforge.compiler.eval_text import cut, evaluation_text
from onnxforge.compiler.perplexity import compare
from onnxforge.compiler.pipeline import edit, parse
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.targets import TARGETS
from onnxforge.models import export_model, open_model
from onnxforge.models.demo import locate_demo
from onnxforge.models.gguf_tensors import BLOCKS_META
from onnxforge.models.source import Source
from onnxforge.models.stored_blocks import MIDDLE, MINIMUM, STORED_BLOCKS
from onnxforge.models.tasks import task_for
from onnxforge.passes.stored_blocks import StoredBlocks

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "models"))

from packed_checkpoints import Recipe, pack

DEMO = "smollm2-135m"
RECIPES = (
    Recipe("gptq", group=64),
    Recipe("gptq", group=64, symmetric=True),
    Recipe("gptq", group=64, shuffled=True),
    Recipe("awq", group=64),
    Recipe("gptq", bits=8, group=64),
)
EXACT = ("quantize-weights.accuracy_level=0", "quantize-weights.skip=embed|lm_head")

AGAIN = ("quantize-weights.keep_blocks=false",)


@dataclass(frozen=True)
class Row:
    """One checkpoint through one target. Ratios are to the float form of the same codes, one per text."""

    checkpoint: str
    steps: str
    bytes: int
    seconds: float
    kept: int
    ratios: tuple[float, ...]
    kl: tuple[float, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=8)
    asked = parser.parse_args()
    source = open_model(DEMO)
    gguf = demo_blocks(source)
    print(gguf, flush=True)
    texts = [evaluation_text(), docstrings()]
    rows, protocols = [], []
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as temp:
            found, protocols = checkpoint(source, recipe, Path(temp), texts, asked.windows)
            rows += found
            print(*found, sep="\n", flush=True)
    record(
        "stored_blocks",
        f"Stored blocks of {DEMO}: codes kept, and what that costs against their float values",
        {"gguf": gguf, "protocols": protocols, "rows": [asdict(row) for row in rows]},
        ("checkpoint", "cpu-int4", "MB", "matrices kept", "ppl ratio", "", "KL", "", "build"),
        [
            (
                row.checkpoint,
                row.steps,
                f"{row.bytes / 1e6:.0f}",
                str(row.kept),
                *(f"{ratio:.6f}" for ratio in row.ratios),
                *(f"{kl:.2e}" for kl in row.kl),
                f"{row.seconds:.0f} s",
            )
            for row in rows
        ],
        [gguf["sentence"], *(f"Text {number + 1}: {said}." for number, said in enumerate(protocols))],
    )
    return 0 if gguf["equal"] == gguf["tensors"] else 1


def demo_blocks(source: Source) -> dict[str, object]:
    """Every tensor of the demo GGUF, against `gguf`'s own dequantization."""
    from gguf import GGUFReader
    from gguf.quants import dequantize

    reader = {tensor.name: tensor for tensor in GGUFReader(locate_demo(DEMO)).tensors}
    equal = codes = values = 0
    for tensor in source.weights.values():
        blocks = tensor.meta[BLOCKS_META]
        stored = reader[blocks.tensor.name]
        told = dequantize(stored.data, stored.tensor_type).reshape(tuple(tensor.shape))
        if blocks.heads is not None:  # the file has each head's pairs side by side, the parameter apart
            told = told.reshape(blocks.heads, -1, 2, told.shape[-1]).swapaxes(1, 2).reshape(told.shape)
        ours = tensor.numpy()
        equal += ours.tobytes() == told.astype(np.float32).tobytes()
        values += ours.size
        if STORED_BLOCKS in tensor.meta:
            codes += decoded(tensor.meta[STORED_BLOCKS]).tobytes() == ours.tobytes()
    count = len(source.weights)
    sentence = (
        f"{DEMO}: {equal} of {count} tensors ({values:,} values) are bit-equal to gguf's dequantization, and "
        f"the codes of {codes} decode to the same bits."
    )
    return {"tensors": count, "equal": equal, "codes": codes, "values": values, "sentence": sentence}


def decoded(blocks: StoredBlocks) -> np.ndarray:
    """float32 [N, K]."""
    bits, block, origin = blocks.form
    codes, steps, rest = blocks.read()
    grid = codes.reshape(*steps.shape, block).astype(np.float32)
    if origin == MINIMUM:
        return (grid * steps[..., None] + rest[..., None]).reshape(codes.shape)
    centre = np.float32(1 << (bits - 1)) if origin == MIDDLE else rest[..., None].astype(np.float32)
    return ((grid - centre) * steps[..., None]).reshape(codes.shape)


def write(source: Source, recipe: Recipe, folder: Path) -> None:
    """The source as a checkpoint of ``recipe``, in two files."""
    folder.mkdir()
    for name, content in source.sidecars.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    config = dict(source.config) | {"quantization_config": recipe.config()}
    (folder / "config.json").write_text(json.dumps(config))
    files: list[dict[str, np.ndarray]] = [{}, {}]
    for number, (name, tensor) in enumerate(source.weights.items()):
        if ".layers." in name and len(tensor.shape) == 2:
            packed, _ = pack(tensor.numpy(), recipe, seed=tensor.shape[1])
            stem = name.removesuffix("weight")
            files[number % 2] |= {stem + last: np.ascontiguousarray(part) for last, part in packed.items()}
        else:
            files[number % 2][name] = tensor.numpy().astype(np.float16)
    table = {}
    for number, tensors in enumerate(files):
        file = f"model-{number + 1:05}-of-00002.safetensors"
        save_file(tensors, folder / file)
        table |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))


def checkpoint(
    source: Source, recipe: Recipe, folder: Path, texts: list, windows: int
) -> tuple[list[Row], list[str]]:
    """The rows of one checkpoint, and how they were scored."""
    write(source, recipe, folder / "checkpoint")
    packed = open_model(str(folder / "checkpoint"))
    exported = export_model(packed)
    compiled(packed, exported, "cpu-fp32", folder / "fp32")
    session = GraphSession(folder / "fp32")
    reference = Remembered(session, folder)
    cuts = [cut(text, session.tokenizer(), window=512, limit=windows) for text in texts]
    wide = () if recipe.bits == 4 else (f"quantize-weights.bits={recipe.bits}",)
    rows = []
    for said, settings in (
        ("exact arithmetic, embedding float", EXACT),
        ("as it is", ()),
        ("codes rounded again", AGAIN),
    ):
        start = time.perf_counter()
        into = folder / str(len(rows))
        kept = compiled(packed, exported, "cpu-int4", into, *settings, *wide)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (into / "onnx").iterdir())
        candidate = GraphSession(into)
        found = [compare(reference, candidate, held) for held, _ in cuts]
        ratios, kl = tuple(item.ratio for item in found), tuple(item.mean_kl for item in found)
        rows.append(Row(recipe.title, said, size, seconds, kept, ratios, kl))
    return rows, [protocol.sentence() for _, protocol in cuts]


def compiled(source: Source, exported: ir.Model, name: str, folder: Path, *settings: str) -> int:
    """Build the target ``name`` with these options of its passes; the number of matrices kept as they are."""
    target = next(target for target in TARGETS if target.name == name)
    steps = edit(parse(target.passes), settings=settings, without=())
    target = replace(target, passes=tuple(step.text() for step in steps))
    folder.mkdir()
    ledger = build(source, exported, target, task_for(source), folder, name=name).ledger
    return sum(note.what == "kept blocks" for record in ledger.records for note in record.matches)


if __name__ == "__main__":
    raise SystemExit(main())
