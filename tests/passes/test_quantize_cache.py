"""An int8 cache: what attention answers then, what is appended, and which graphs are refused."""

import re

import numpy as np
import onnx_ir as ir
import pytest
from attention_runs import session

from onnxforge.passes import notes
from onnxforge.passes.base import PassRefused
from onnxforge.passes.cache_range import annotate_cache
from onnxforge.passes.quantize_cache import QuantizeCache

HEADS, KV_HEADS, WIDTH, PAST, NEW = 4, 2, 16, 11, 5
TEXT = f"""
<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
layer (float[b,s,{HEADS * WIDTH}] q, float[b,s,{KV_HEADS * WIDTH}] k, float[b,s,{KV_HEADS * WIDTH}] v,
       float[b,{KV_HEADS},p,{WIDTH}] past_key_values_0_key,
       float[b,{KV_HEADS},p,{WIDTH}] past_key_values_0_value,
       int32[b] last, int32 total)
   => (float[b,s,{HEADS * WIDTH}] y, float[b,{KV_HEADS},t,{WIDTH}] present_0_key,
       float[b,{KV_HEADS},t,{WIDTH}] present_0_value)
{{
   y, present_0_key, present_0_value =
      com.microsoft.GroupQueryAttention <num_heads = {HEADS}, kv_num_heads = {KV_HEADS}>
      (q, k, v, past_key_values_0_key, past_key_values_0_value, last, total)
}}
"""
OUTLIER = 3
"""A channel of the keys that is far larger than the others."""


def layer(text: str = TEXT, measured: bool = True) -> ir.Model:
    model = ir.from_onnx_text(text)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = re.sub(r"_0_(key|value)$", r".0.\1", value.name)
    for value in model.graph.outputs if measured else ():
        if value.name.startswith("present"):
            annotate_cache(value, largest()[value.name.rsplit(".", 1)[-1]])
    return model


def data() -> dict[str, np.ndarray]:
    """Feeds; keys with one channel that is 40 times as large as the others."""
    rng = np.random.default_rng(0)
    shapes = {"q": (1, NEW, HEADS * WIDTH)} | dict.fromkeys("kv", (1, NEW, KV_HEADS * WIDTH))
    shapes |= {f"past_key_values.0.{side}": (1, KV_HEADS, PAST, WIDTH) for side in ("key", "value")}
    feeds = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    for name in ("k", "past_key_values.0.key"):
        feeds[name][..., OUTLIER :: WIDTH if name == "k" else 99] *= 40
    total = PAST + NEW
    return feeds | {"last": np.array([total - 1], np.int32), "total": np.array(total, np.int32)}


def largest() -> dict[str, np.ndarray]:
    feeds = data()
    sides = {"key": "k", "value": "v"}
    appended = {s: feeds[n].reshape(NEW, KV_HEADS, WIDTH).transpose(1, 0, 2) for s, n in sides.items()}
    every = {s: np.concatenate([feeds[f"past_key_values.0.{s}"][0], appended[s]], axis=1) for s in sides}
    return {side: np.abs(rows).max(axis=1) for side, rows in every.items()}


def answers(model: ir.Model) -> dict[str, np.ndarray]:
    """Outputs by name; an int8 past is what the float one rounds to."""
    feeds = data()
    scales = {node.inputs[i].name: node.inputs[j] for node in model.graph for i, j in ((3, 12), (4, 13))
              if len(node.inputs) > j}  # fmt: skip
    for name, scale in scales.items():
        step = scale.const_value.numpy()
        feeds[name] = np.clip(np.rint(feeds[name] / step), -128, 127).astype(np.int8)
    names = [value.name for value in model.graph.outputs]
    found = dict(zip(names, session(model).run(names, feeds), strict=True))
    for past, scale in scales.items():
        name = past.replace("past_key_values", "present")
        assert found[name].dtype == np.int8
        found[name] = found[name] * scale.const_value.numpy()
    return found


def error(granularity: str, output: str) -> float:
    model = layer()
    assert QuantizeCache(granularity=granularity)(model).modified
    meant, got = answers(layer())[output], answers(model)[output]
    return float(np.abs(got - meant).max() / np.abs(meant).max())


def test_what_is_kept_is_within_half_a_step():
    model = layer()
    with notes.listen() as said:
        assert QuantizeCache()(model).modified
    assert len(said) == 1
    meant, got = answers(layer()), answers(model)
    for side, name in (("key", "present.0.key"), ("value", "present.0.value")):
        step = largest()[side][None, :, None, :] / 127
        assert np.all(np.abs(got[name] - meant[name]) <= 0.5001 * step)


def test_a_large_channel_costs_the_others_nothing_where_each_has_its_scale():
    per_channel, per_tensor = error("channel", "y"), error("tensor", "y")
    assert per_channel < 0.02
    assert per_tensor > 2 * per_channel


def test_types_shapes_and_attributes():
    model = layer()
    QuantizeCache()(model)
    (node,) = model.graph
    caches = [v for v in (*model.graph.inputs, *model.graph.outputs) if re.match("pa|pr", v.name)]
    assert {value.dtype for value in caches} == {ir.DataType.INT8}
    assert [node.inputs[i].const_value.shape.numpy() for i in (12, 13)] == [(1, KV_HEADS, 1, WIDTH)] * 2
    assert {node.inputs[i].dtype for i in (12, 13)} == {ir.DataType.FLOAT}
    assert [node.attributes[f"{s}_quant_type"].as_string() for s in "kv"] == ["PER_CHANNEL"] * 2
    assert node.attributes["kv_cache_bit_width"].as_int() == 8
    other = layer()
    QuantizeCache(granularity="tensor")(other)
    (node,) = other.graph
    assert [node.inputs[i].const_value.numpy() for i in (12, 13)] == [
        pytest.approx([largest()[side].max() / 127]) for side in ("key", "value")
    ]


def test_once_is_enough():
    model = layer()
    QuantizeCache()(model)
    before = ir.to_onnx_text(model)
    assert not QuantizeCache()(model).modified
    assert ir.to_onnx_text(model) == before


def test_a_channel_that_is_always_zero_stays_zero():
    model = layer()
    found = largest()["key"]
    found[:, 0] = 0
    annotate_cache(next(v for v in model.graph.outputs if v.name == "present.0.key"), found)
    QuantizeCache()(model)
    assert np.isfinite(answers(model)["y"]).all()


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (layer(measured=False), {}, "put `calibrate-cache` before"),
        (layer(), {"granularity": "token"}, "channel or tensor"),
        (ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] y) '
                           "{ y = Neg(x) }"), {}, "no key-value cache"),
        (layer(TEXT.replace("}", "z = Neg(past_key_values_0_key)\n}")), {}, "GroupQueryAttention, Neg"),
        (layer(TEXT.replace("}", "z = Neg(present_0_value)\n}")), {}, "others read it too"),
    ],
    ids=["not measured", "granularity", "no cache", "two readers", "present read"],
)  # fmt: skip
def test_what_is_refused(model: ir.Model, options: dict[str, str], reason: str):
    with pytest.raises(ir.passes.PreconditionError) as caught:
        QuantizeCache(**options)(model)
    assert isinstance(caught.value.__cause__, PassRefused)
    assert reason in str(caught.value.__cause__)
