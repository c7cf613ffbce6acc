"""Labels through operators: where they come out, and what stops them. Graphs of the TorchScript era too."""

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import fill
from legacy_exports import legacy_decoder, legacy_encoder
from loop_runs import FUSED
from pruning_runs import answer, groups, silenced, with_moments

from onnxforge.compiler import pipeline
from onnxforge.passes.coupled_axes import LabelledAxis, coupled_axes, shape_facts
from onnxforge.passes.coupling_rules import Stopped
from onnxforge.passes.prune_groups import Unit
from onnxforge.passes.prune_heads import PruneHeads
from onnxforge.passes.prune_mlp import PruneMlp
from onnxforge.passes.unit_scores import removal

WIDTH = 6


def chain(middle: str, up: int = WIDTH, down: int = WIDTH, **arrays: tuple[int, ...]) -> ir.Model:
    """``x @ up``, then ``middle`` from h to n, then ``n @ down``."""
    model = ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["" : 23, "com.microsoft": 1]>
g (float[batch_size, s, 4] x) => (float[batch_size, s, 4] y) {{
    h = MatMul (x, up)
    {middle}
    y = MatMul (n, down)
}}""")
    shapes = {"up": (4, up), "down": (down, 4)} | arrays
    rng = np.random.default_rng(0)
    fill(model.graph, {name: rng.standard_normal(shape).astype("f") for name, shape in shapes.items()})
    return model


def labels(model: ir.Model, size: int = WIDTH) -> dict[str, tuple[int, list[int]]]:
    """From the columns that ``down`` reads, one unit each: axis and labels of every value reached."""
    reader = model.graph.outputs[0].producer()
    seeds = [LabelledAxis(reader.inputs[0], -1, np.arange(size))]
    found = coupled_axes(model.graph, seeds, shape_facts(model.graph))
    return {axis.value.name: (axis.axis, axis.labels.tolist()) for axis in found}


ALL = list(range(WIDTH))


def test_elementwise_with_bias_scalar_and_gate():
    model = chain(
        "b = Add (h, bias) a = Gelu (b) g = MatMul (x, gate) s = Mul (g, one) n = Mul (a, s)",
        bias=(WIDTH,),
        gate=(4, WIDTH),
        one=(1,),
    )
    found = labels(model)
    assert found["bias"] == (-1, ALL)
    assert found["up"] == found["gate"] == (-1, ALL)
    assert found["down"] == (-2, ALL)
    assert "one" not in found
    assert "x" not in found


def test_a_packed_gate_has_every_unit_twice():
    model = chain("g, u = Split <axis = -1, num_outputs = 2> (h) n = Mul (g, u)", up=2 * WIDTH)
    assert labels(model)["up"] == (-1, ALL + ALL)


def test_a_piece_that_nobody_labels_stays():
    model = chain("u, rest = Split <axis = 2> (h, sizes) n = Relu (u)", up=WIDTH + 3)
    sizes = ir.Value(name="sizes", const_value=ir.tensor(np.array([WIDTH, 3]), name="sizes"))
    split = next(node for node in model.graph if node.op_type == "Split")
    split.replace_input_with(1, sizes)
    model.graph.register_initializer(sizes)
    assert labels(model)["up"] == (-1, [*ALL, -1, -1, -1])


def test_a_concat_of_two_matrices():
    model = chain("o = MatMul (x, other) n = Concat <axis = -1> (h, o)", up=4, other=(4, 2))
    found = labels(model)
    assert found["up"] == (-1, [0, 1, 2, 3])
    assert found["other"] == (-1, [4, 5])


def test_heads_through_reshape_and_transpose():
    model = chain(
        "a = Reshape (h, split) t = Transpose <perm = [0, 2, 1, 3]> (a) r = Relu (t)"
        "b = Transpose <perm = [0, 2, 1, 3]> (r) n = Reshape (b, merge)"
    )
    fill(model.graph, {"split": np.array([0, 0, 3, 2]), "merge": np.array([0, 0, 6])})
    value = next(node for node in model.graph if node.op_type == "Relu").outputs[0]
    seeds = [LabelledAxis(value, -3, np.arange(3))]
    found = {
        axis.value.name: (axis.axis, axis.labels.tolist())
        for axis in coupled_axes(model.graph, seeds, shape_facts(model.graph))
    }
    assert found["up"] == (-1, [0, 0, 1, 1, 2, 2])
    assert found["down"] == (-2, [0, 0, 1, 1, 2, 2])
    assert found["a"] == (-2, [0, 1, 2])


@pytest.mark.parametrize(
    ("middle", "said"),
    [
        ("[inner] n = Softmax <axis = 2> (h)", "Softmax 'inner': it normalizes over this axis"),
        ("[inner] n = LpNormalization (h)", "LpNormalization 'inner': it normalizes"),
        ("[inner] n = CumSum (h, two)", "CumSum 'inner': nothing is known of how CumSum couples"),
        (
            "p, q = Split <axis = -1, num_outputs = 2> (h) c = Concat <axis = -1> (q, p) n = Add (h, c)",
            "that belong to different units",
        ),
        ("q = QuantizeLinear (h, two) [inner] n = DequantizeLinear (q, two)", "prune before"),
        ("[inner] n = Add (h, x)", "Add 'inner': 'x' is an input of the graph"),
    ],
)
def test_what_stops(middle, said):
    width = 4 if "x)" in middle else WIDTH
    model = chain(middle, up=width, down=width, two=(1,))
    with pytest.raises(Stopped, match=said.replace("(", r"\(")):
        labels(model, width)


def test_an_output_of_the_graph_stops():
    model = chain("n = Relu (h)")
    model.graph.outputs.append(next(node for node in model.graph if node.op_type == "Relu").outputs[0])
    with pytest.raises(Stopped, match="'n' is an output of the graph"):
        labels(model)


def test_a_shape_that_is_computed_stops():
    model = chain("z = Shape (x) p = Slice (z, zero, two) c = Concat <axis = 0> (p, six) n = Reshape (h, c)")
    arrays = {"zero": np.array([0]), "two": np.array([2]), "six": np.array([6])}
    fill(model.graph, arrays)
    with pytest.raises(Stopped, match="Reshape"):
        labels(model)


def test_layers_that_share_a_matrix_are_one_group():
    model = ir.from_onnx_text("""<ir_version: 10, opset_import: ["" : 23]>
g (float[batch_size, s, 4] x) => (float[batch_size, s, 4] y) {
    h = MatMul (x, up) a = Relu (h) d = MatMul (a, down) r = Add (x, d)
    i = MatMul (r, up) b = Relu (i) e = MatMul (b, down) y = Add (r, e)
}""")
    fill(model.graph, {"up": np.ones((4, 6), "f"), "down": np.ones((6, 4), "f")})
    (group,) = groups(model, Unit.CHANNEL)
    assert [node.inputs[0].name for node in group.readers()] == ["a", "b"]
    with_moments(model)
    assert PruneMlp(share=0.5)(model).modified
    assert model.graph.initializers["up"].shape == [4, 3]
    assert model.graph.initializers["down"].shape == [3, 4]


def fuse(model: ir.Model) -> ir.Model:
    for step in pipeline.parse(FUSED[:-2]):
        step(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_of_the_torchscript_era(tiny_torch, family):
    make = lambda: fuse(legacy_decoder(tiny_torch(family)))  # noqa: E731
    model = with_moments(make())
    for unit, step in (
        (Unit.CHANNEL, PruneMlp(share=0.5, score="wanda", refit=False)),
        (Unit.KV_GROUP, PruneHeads(share=0.5, unit="group", score="wanda", refit=False)),
    ):
        found = groups(model, unit)
        gone = {group.name: set(removal(group, "wanda", group.units // 2).order) for group in found}
        wanted = answer(silenced(make(), unit, gone))
        smaller = model.clone()
        assert step(smaller).modified
        assert np.abs(answer(smaller) - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_an_encoder_of_the_torchscript_era(tiny_torch):
    make = lambda: fuse(legacy_encoder(tiny_torch("bert", "feature-extraction")))  # noqa: E731
    model = with_moments(make())
    gone = {g.name: set(removal(g, "wanda", 40).order) for g in groups(model, Unit.CHANNEL)}
    wanted = answer(silenced(make(), Unit.CHANNEL, gone))
    assert PruneMlp(share=0.5, score="wanda", refit=False)(model).modified
    assert np.abs(answer(model) - wanted).max() < 1e-5 * np.abs(wanted).max()
