"""Torch gives what ONNX Runtime gives, and its gradients are those of finite differences."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from onnxforge.compiler import pipeline
from onnxforge.compiler.calibration_data import CalibrationBatch
from onnxforge.compiler.targets import TARGETS
from onnxforge.compiler.torch_feeds import torch_feeds
from onnxforge.compiler.torch_graph import RULES, TorchGraph, Weights
from onnxforge.models.families import FAMILIES
from onnxforge.passes.base import PassRefused
from onnxforge.passes.residual_branches import residual_branches

FUSE = next(t for t in TARGETS if t.name == "cpu-fp32").passes[:-2]
FIXTURES = Path(__file__).parents[1] / "passes" / "fixtures"
OTHER_FAMILIES = sorted(set(FAMILIES) - {"llama", "bert"})


def batch() -> CalibrationBatch:
    mask = np.ones((2, 9), dtype=np.int64)
    mask[1, 6:] = 0
    return CalibrationBatch(np.random.default_rng(3).integers(3, 60, mask.shape) * mask, mask)


def run(model: ir.Model, feeds: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    payload = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(payload, options, providers=["CPUExecutionProvider"])
    return session.run([model.graph.outputs[0].name], feeds)[0]


def fused(model: ir.Model) -> ir.Model:
    for step in pipeline.parse(FUSE):
        step(model)
    return model


def difference(model: ir.Model) -> float:
    """Of the first output, on real tokens."""
    feeds = torch_feeds(model.graph, batch())
    want = run(model, {name: tensor.numpy() for name, tensor in feeds.items()})
    with torch.no_grad():
        got = TorchGraph(model.graph, [model.graph.outputs[0]])(feeds)[0].numpy()
    assert got.shape == want.shape
    real = batch().mask.astype(bool)
    return float(np.abs(got - want)[real].max())


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_fused_families(tiny_export, family):
    model = fused(tiny_export(family))
    assert any(node.domain == "com.microsoft" for node in model.graph)
    assert difference(model) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_all_families(tiny_export, family):
    model = tiny_export(family)
    assert difference(model) < 2e-5
    assert difference(fused(model)) < 2e-5


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.onnx")), ids=lambda path: path.stem)
def test_graphs_of_the_torchscript_era(path):
    model = ir.load(path)
    assert difference(model) < 2e-5
    assert difference(fused(model)) < 2e-5


@pytest.mark.slow
def test_the_demo_decoder():
    from onnxforge.compiler.activations import watched_rows
    from onnxforge.compiler.calibration_data import attach, calibration_batches
    from onnxforge.models import export_model, open_model

    source = open_model("smollm2-135m")
    model = fused(export_model(source, None))
    attach(model, source)
    (window,) = calibration_batches(model, 1, 128)
    ((want,),) = watched_rows(model, [model.graph.outputs[0]], [window])
    with torch.no_grad():
        (got,) = TorchGraph(model.graph, [model.graph.outputs[0]])(torch_feeds(model.graph, window))
    assert float(np.abs(got[0].numpy() - want).max()) < 1e-3


ATTENTION = """
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
attention (float[1, 6, 64] q, float[1, 6, 32] k, float[1, 6, 32] v, float[1, 2, 0, 16] past)
    => (float[1, 6, 64] y)
<int32[1] last = {{5}}, int32 total = {{6}}>
{{
   y, pk, pv = com.microsoft.GroupQueryAttention <num_heads = 4, kv_num_heads = 2 {attributes}>
       (q, k, v, past, past, last, total {inputs})
}}
"""


@pytest.mark.parametrize(
    ("attributes", "inputs", "extra"),
    [
        (", local_window_size = 3", "", {}),
        (", softcap = 2.0, local_window_size = 2", "", {}),
        (", smooth_softmax = 1", "", {}),
        (", scale = 0.7", ", , , , , sink", {"sink": (4,)}),
        ("", ", , , , bias", {"bias": (1, 4, 6, 6)}),
        (", do_rotary = 1, rotary_interleaved = 1", ", cos, sin", {"cos": (9, 8), "sin": (9, 8)}),
        (", do_rotary = 1", ", cos, sin", {"cos": (9, 8), "sin": (9, 8)}),
    ],
)
def test_forms_of_grouped_attention(attributes, inputs, extra):
    rng = np.random.default_rng(1)
    text = ATTENTION.format(attributes=attributes, inputs=inputs)
    declared = "".join(f", float[{','.join(map(str, shape))}] {name}" for name, shape in extra.items())
    model = ir.from_onnx_text(text.replace("past)\n", f"past{declared})\n"))
    shapes = {"q": (1, 6, 64), "k": (1, 6, 32), "v": (1, 6, 32), "past": (1, 2, 0, 16), **extra}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    got = TorchGraph(model.graph, model.graph.outputs)(
        {name: torch.from_numpy(array) for name, array in feeds.items()}
    )
    np.testing.assert_allclose(got[0].numpy(), run(model, feeds), atol=2e-6)


@pytest.mark.parametrize("name", ["llama_sdpa", "bert_eager"])
def test_gradients_are_those_of_finite_differences(name):
    model = fused(ir.load(FIXTURES / f"{name}.onnx"))
    leaves = [
        value
        for value in model.graph.initializers.values()
        if value.dtype == ir.DataType.FLOAT and value.const_value.size > 16 and "cos" not in value.name
    ]
    graph = TorchGraph(model.graph, [model.graph.outputs[0]], leaves=leaves)
    feeds = torch_feeds(model.graph, batch())
    weights = torch.randn(graph(feeds)[0].shape, generator=torch.Generator().manual_seed(4))

    def loss() -> torch.Tensor:
        return (graph(feeds)[0] * weights).mean()

    slopes = torch.autograd.grad(loss(), list(graph.parameters.values()))
    assert len(slopes) > 10
    rng, step = torch.Generator().manual_seed(5), 1e-3
    for parameter, slope in zip(graph.parameters.values(), slopes, strict=True):
        direction = torch.randn(parameter.shape, generator=rng) * slope.abs().mean().sqrt()
        direction /= direction.norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
                ends.append(float(loss()))
                parameter -= sign * step * direction
        expected = float((slope * direction).sum())
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(expected, rel=0.03, abs=3e-4)


def test_a_part_reads_only_its_own_weights(tiny_export):
    model = fused(tiny_export("llama"))
    read = []

    def spied(value):
        tensor = value.const_value

        def evaluate():
            read.append(value.name)
            return ir.tensor(tensor.numpy())

        return ir.LazyTensor(evaluate, dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    for value in model.graph.initializers.values():
        value.const_value = spied(value)
    middle, end = (branch.join.outputs[0] for branch in residual_branches(model.graph)[3:5])
    part = TorchGraph(model.graph, [end], given=[middle, *model.graph.inputs])
    weights = {name for name in read if name.startswith("model.")}
    assert len(weights) == 3  # norm, packed qkv, o
    assert all("layers.2" in name for name in weights)
    assert middle in part.needs


def test_values_inside_keep_their_gradients():
    model = fused(ir.load(FIXTURES / "llama_sdpa.onnx"))
    products = [node.inputs[0] for node in model.graph if node.op_type == "MatMul"]
    inside = list(dict.fromkeys(value for value in products if value.producer() is not None))
    graph = TorchGraph(model.graph, [model.graph.outputs[0], *inside], leaves=inside)
    logits, *values = graph(torch_feeds(model.graph, batch()))
    slopes = torch.autograd.grad(logits.square().mean(), values)
    assert all(float(slope.abs().max()) > 0 for slope in slopes)


def test_an_unknown_operator_is_refused_by_name():
    text = """
    <ir_version: 10, opset_import: ["" : 20]>
    g (float[2, 3] x) => (float[2, 3] y) <float[3] w = {1.0, 2.0, 3.0}>
    { a = Mul (x, w)  y = Hardmax (a) }
    """
    model = ir.from_onnx_text(text)
    list(model.graph)[1].name = "the_node"
    with pytest.raises(PassRefused, match=r"'the_node' \(Hardmax\)"):
        TorchGraph(model.graph, model.graph.outputs, leaves=[model.graph.initializers["w"]])
    feeds = {"x": torch.tensor([[1.0, 5.0, 2.0], [3.0, 1.0, 1.0]])}
    (got,) = TorchGraph(model.graph, model.graph.outputs)(feeds)  # without a gradient, as ONNX defines it
    assert got.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_an_unknown_domain_is_refused_even_without_gradients():
    text = """
    <ir_version: 10, opset_import: ["" : 20, "their.own" : 1]>
    g (float[2] x) => (float[2] y) { y = their.own.Trick (x) }
    """
    model = ir.from_onnx_text(text)
    with pytest.raises(PassRefused, match=r"their\.own\.Trick"):
        TorchGraph(model.graph, model.graph.outputs)


def test_shared_weights_are_made_once():
    model, store = ir.load(FIXTURES / "llama_sdpa.onnx"), Weights()
    first = TorchGraph(model.graph, [model.graph.outputs[0]], weights=store)
    other = model.clone()
    second = TorchGraph(other.graph, [other.graph.outputs[0]], weights=store)
    names = {value.name: tensor for value, tensor in first._constants.items()}
    assert all(names[value.name] is tensor for value, tensor in second._constants.items())


def test_every_operator_of_our_graphs_has_a_rule():
    for path in FIXTURES.glob("*.onnx"):
        for node in fused(ir.load(path)).graph:
            assert (node.domain, node.op_type) in RULES
