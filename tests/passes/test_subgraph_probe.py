"""Probes agree with what ONNX Runtime computes, and refuse what they cannot know."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import session

from onnxforge.passes.subgraph_probe import LIMIT, Bench, Probe, Sizes, TooLarge, Unprobeable

FIXTURES = Path(__file__).parent / "fixtures"


def with_every_value_returned(model: ir.Model) -> ir.Model:
    shown = model.clone()
    returned = {value.name for value in shown.graph.outputs}
    for node in shown.graph:
        for value in node.outputs:
            if value.name and value.name not in returned:
                value.type = None
                shown.graph.outputs.append(value)
    return shown


@pytest.mark.parametrize("name", ["llama_sdpa", "llama_eager", "gemma2_eager", "bert_eager", "mpnet"])
def test_every_shape_and_every_known_value_is_what_runs(name: str):
    model = ir.load(FIXTURES / f"{name}.onnx")
    cached = any(value.name.startswith("past") for value in model.graph.inputs)
    sizes = Sizes(2, 5, 3 if cached else 0)
    probe = Bench(model.graph).probe(sizes)
    rng = np.random.default_rng(0)
    feeds = {
        "input_ids": rng.integers(3, 61, (2, 5)),
        "attention_mask": probe.mask,
        "position_ids": np.arange(sizes.past, sizes.total)[None].repeat(2, axis=0),
        "token_type_ids": np.zeros((2, 5), np.int64),
    }
    running = session(with_every_value_returned(model))
    for item in running.get_inputs():
        feeds.setdefault(item.name, rng.standard_normal((2, 2, sizes.past, 16)).astype(np.float32))
    given = {item.name: feeds[item.name] for item in running.get_inputs()}
    names = [item.name for item in running.get_outputs()]
    ran = dict(zip(names, running.run(names, given), strict=True))
    values = {value.name: value for node in model.graph for value in node.outputs}
    known = 0
    for value_name, array in ran.items():
        assert probe.shape(values[value_name]) == array.shape, value_name
        if probe.knows(values[value_name]):
            known += 1
            np.testing.assert_allclose(probe.value(values[value_name]), array, rtol=1e-5, atol=1e-6)
    assert known > len(ran) // 4


def graph(body: str) -> ir.Graph:
    text = '<ir_version: 10, opset_import: ["" : 21]> g (int64[B, S] input_ids, int64[B, T] attention_mask)'
    return ir.from_onnx_text(f"{text} => (float[n] y) {{ {body} }}").graph


def test_token_ids_are_not_known_and_their_shape_is():
    found = graph("y = Add(input_ids, input_ids)")
    probe = Bench(found).probe(Sizes(3, 4, 0))
    assert probe.shape(found.outputs[0]) == (3, 4)
    assert not probe.knows(found.outputs[0])
    with pytest.raises(Unprobeable, match="contents of the graph input 'input_ids'"):
        probe.value(found.outputs[0])


def test_an_array_beyond_the_limit_is_not_computed():
    found = graph(
        f"one = Constant<value_ints=[1]>() wide = Constant<value_ints=[{LIMIT + 1}]>() y = Expand(one, wide)"
    )
    with pytest.raises(TooLarge):
        Bench(found).probe(Sizes(1, 4, 0)).value(found.outputs[0])


def test_assumptions_reach_what_depends_on_them_and_nothing_else():
    found = graph("a = Mul(input_ids, attention_mask) b = Add(a, attention_mask) y = Add(b, a)")
    probe: Probe = Bench(found).probe(Sizes(1, 2, 0))
    by_name = {value.name: value for node in found for value in node.outputs}
    assumed = probe.assuming({by_name["a"]: np.array([[5, 7]])})
    np.testing.assert_array_equal(assumed.value(by_name["y"]), [[11, 15]])
    assert not probe.knows(by_name["y"])


def test_a_large_float_constant_is_a_weight_and_stays_on_disk():
    found = graph("y = Add(w, w)")
    weight = found[0].inputs[0]
    read = []

    def bytes_of_the_weight() -> ir.TensorProtocol:
        read.append(True)
        return ir.tensor(np.zeros(70000, np.float32))

    weight.const_value = ir.LazyTensor(
        bytes_of_the_weight, dtype=ir.DataType.FLOAT, shape=ir.Shape([70000]), name="w"
    )
    probe = Bench(found).probe(Sizes(1, 2, 0))
    assert probe.shape(found.outputs[0]) == (70000,)
    assert not probe.knows(found.outputs[0])
    assert not read
