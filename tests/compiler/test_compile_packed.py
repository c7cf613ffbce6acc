"""GPTQ and AWQ checkpoints become artifacts that multiply by the checkpoint's codes, and answer like it."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from packed_checkpoints import Recipe, pack, rounded, write

from onnxforge.compiler.build import build
from onnxforge.compiler.observe import run_passes
from onnxforge.compiler.pipeline import edit, parse
from onnxforge.compiler.proof_session import GraphSession
from onnxforge.compiler.targets import TARGETS
from onnxforge.models import export_model, open_model
from onnxforge.models.packed_format import packed_format
from onnxforge.models.packed_weights import unpacked
from onnxforge.models.source import Source
from onnxforge.models.tasks import task_for
from onnxforge.passes.canonicalize import Canonicalize

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
IDS = np.random.default_rng(0).integers(3, 97, (1, 24))


def built(source: Source, exported: ir.Model, name: str, folder: Path, *settings: str) -> Path:
    """An unproven artifact for the target ``name``, with these options of its passes."""
    target = next(target for target in TARGETS if target.name == name)
    passes = edit(parse(target.passes), settings=settings, without=())
    target = replace(target, passes=tuple(step.text() for step in passes))
    folder.mkdir()
    build(source, exported, target, task_for(source), folder, name=name)
    return folder


def torch_logits(model, values: dict[str, np.ndarray]) -> np.ndarray:
    """The model of transformers over the dequantized values."""
    import copy

    import torch

    reference = copy.deepcopy(model)
    reference.load_state_dict({name: torch.tensor(array) for name, array in values.items()})
    with torch.no_grad():
        return reference(torch.tensor(IDS)).logits[0].numpy()


def initializers(folder: Path) -> dict[str, np.ndarray]:
    graph = onnx.load(folder / "onnx" / "model.onnx").graph
    return {item.name: numpy_helper.to_array(item) for item in graph.initializer}


def halves(packed: np.ndarray) -> np.ndarray:
    """uint8 [rows, codes], two from each byte."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)


@pytest.mark.parametrize(("symmetric", "shuffled"), [(True, False), (True, True), (False, False)])
def test_cuda_keeps_symmetric_codes_in_blocks_of_32_and_rounds_others(symmetric: bool, shuffled: bool):
    """The weight quantization of `cuda-int4` on one product, over a matrix in groups of 64."""
    recipe = Recipe("gptq", group=64, symmetric=symmetric, shuffled=shuffled)
    weight = np.random.default_rng(2).standard_normal((64, 128)).astype(np.float32)
    tensors, values = pack(weight, recipe)
    stored = {f"x.{name}": ir.tensor(array) for name, array in tensors.items()}
    tensor = unpacked(stored, packed_format(recipe.config(), "here"), "here", turned=False)["x.weight"]
    graph = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>'
        "g (float[s,128] x, float[64,128] w) => (float[s,64] y) {"
        " t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }"
    )
    value = graph.graph.inputs.pop()
    value.const_value = tensor
    graph.graph.register_initializer(value)
    texts = next(target for target in TARGETS if target.name == "cuda-int4").passes
    steps = edit(
        parse(texts), settings=("quantize-weights.min_elements=1", "quantize-weights.method=rtn"), without=()
    )
    first = next(step for step in steps if step.pass_name() == "quantize-weights")
    ledger = run_passes(graph, [Canonicalize(), first])
    (product,) = [node for node in graph.graph if node.op_type == "MatMulNBits"]
    assert product.attributes["block_size"].as_int() == 32
    assert len(product.inputs) == 3, "no zero points"
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString())
    (got,) = session.run(None, {"x": np.eye(128, dtype=np.float32)})
    assert np.array_equal(got, values.T) == symmetric
    reasons = [note.reason for note in ledger.near_misses("quantize-weights")]
    assert bool(reasons) == (not symmetric)
    assert all("its own zero; symmetric blocks are needed; rounded" in str(reason) for reason in reasons)


@pytest.mark.parametrize(
    ("model_type", "recipe"),
    [
        ("llama", Recipe("gptq", shuffled=True)),
        ("qwen2", Recipe("awq", group=64)),
    ],
    ids=["llama-gptq-reordered", "qwen2-awq"],
)
def test_codes_stay_and_logits_are_those_of_the_values(
    tmp_path: Path, tiny_torch: Callable, model_type: str, recipe: Recipe
):
    model = tiny_torch(model_type, None, **SIZES)
    values = write(tmp_path / "source", model, recipe)
    source = open_model(str(tmp_path / "source"))
    exported = export_model(source)
    for name in values.keys() & exported.graph.initializers.keys():
        np.testing.assert_array_equal(exported.graph.initializers[name].const_value.numpy(), values[name])
    expected = torch_logits(model, values)
    small = "quantize-weights.min_elements=1"
    exact = ("quantize-weights.accuracy_level=0", "quantize-weights.skip=embed|lm_head")
    # The last rounds activations to int8 as well, per block of 32 or 64.
    for target, settings, tolerance in (
        ("cpu-fp32", (), 1e-5),
        ("cpu-int4", (small, *exact), 1e-5),
        ("cpu-int4", (small,), 0.05),
    ):
        made = built(source, exported, target, tmp_path / f"{target}{len(settings)}", *settings)
        got = GraphSession(made).logits(IDS)
        assert np.linalg.norm(got - expected) < tolerance * np.linalg.norm(expected), target
    # The artifact's codes are the checkpoint's, neighbours of one block side by side.
    held, name = initializers(made), "model.layers.1.mlp.down_proj.weight"
    weight = model.state_dict()[name].numpy()
    told = rounded(weight, recipe, seed=weight.shape[1])
    order = np.argsort(told.index, kind="stable")
    blocks = told.index[order][:: recipe.group]
    assert np.array_equal(halves(held[f"{name}.q4"]), told.codes[:, order])
    assert np.array_equal(held[f"{name}.scales"], told.scales[:, blocks].astype(np.float32))
    assert np.array_equal(halves(held[f"{name}.zeros"])[:, : len(blocks)], told.zeros[:, blocks])
