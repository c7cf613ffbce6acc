import numpy as np
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper, save_model

from onnxforge.compiler.roofline import Machine, compute_roofline, decode_roofline, measure_machine
from onnxforge.compiler.traffic import traffic_of


def write(tmp_path, nodes, initializers, inputs=("x",)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in inputs],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in initializers.items()],
    )
    path = tmp_path / "model.onnx"
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    save_model(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def test_the_hand_made_decoder_adds_up(make_artifact):
    found = traffic_of(make_artifact("a") / "onnx" / "model.onnx")
    matrices = 2 * 4 * 8 * 8 + 8 * 200
    assert found.parameters == 200 * 8 + matrices
    assert found.float_macs == matrices
    assert found.integer_macs == 0
    assert found.cache_bytes_per_position == 2 * 2 * 2 * 4 * 4  # layers, key and value, heads, width, bytes
    shapes_and_indices = found.weight_bytes - 4 * matrices
    assert 0 <= shapes_and_indices < 300, "the embedding is looked up by row, so it is not streamed"
    assert found.stored_bytes - found.weight_bytes == 4 * 200 * 8


def test_a_tied_embedding_is_streamed_and_counted_once(tmp_path):
    nodes = [
        helper.make_node("Gather", ["embed", "ids"], ["h"]),
        helper.make_node("Transpose", ["embed"], ["head"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "head"], ["y"]),
    ]
    found = traffic_of(write(tmp_path, nodes, {"embed": zeros(50, 8)}, ("ids",)))
    assert (found.parameters, found.weight_bytes, found.float_macs) == (400, 1600, 400)


def test_blockwise_weights_count_logically_and_stream_as_stored(tmp_path):
    node = helper.make_node(
        "MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=64, N=16, bits=4, block_size=32
    )
    packed = {"b": zeros(16, 2, 16, dtype=np.uint8), "s": zeros(32)}
    found = traffic_of(write(tmp_path, [node], packed))
    assert found.parameters == 64 * 16
    assert found.integer_macs == 64 * 16
    assert found.weight_bytes == 16 * 2 * 16 + 32 * 4


def test_dequantized_weights_are_integers_with_scales(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], axis=1),
        helper.make_node("MatMul", ["x", "f"], ["y"]),
    ]
    weights = {"w": zeros(64, 16, dtype=np.int8), "s": zeros(16), "z": zeros(16, dtype=np.int8)}
    found = traffic_of(write(tmp_path, nodes, weights))
    assert (found.parameters, found.integer_macs, found.float_macs) == (1024, 1024, 0)
    assert found.weight_bytes == 1024 + 64 + 16


def test_a_quantized_embedding_is_still_looked_up_by_row(tmp_path):
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["f"], axis=1),
        helper.make_node("Gather", ["f", "ids"], ["y"]),
    ]
    found = traffic_of(write(tmp_path, nodes, {"w": zeros(50, 8, dtype=np.int8), "s": zeros(8)}, ("ids",)))
    assert found.parameters == 400
    assert found.weight_bytes <= 32


def test_weights_are_not_loaded(make_artifact):
    folder = make_artifact("a")
    (folder / "onnx" / "model.onnx_data").unlink()
    assert traffic_of(folder / "onnx" / "model.onnx").parameters > 0
    assert ir.load(folder / "onnx" / "model.onnx").graph.num_nodes() > 10


def test_bounds_are_bandwidth_and_rate_over_work(tmp_path):
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    traffic = traffic_of(write(tmp_path, [node], {"w": zeros(100, 100)}))
    machine = Machine(threads=2, read_bandwidth=4e6, float_rate=2e6, integer_rate=8e6)
    decode = decode_roofline("tg8", traffic, machine, 0, measured=25)
    assert (decode.bytes_per_token, decode.bound, decode.percent) == (40_000, 100, 25)
    prefill = compute_roofline("pp8", traffic, machine, measured=50)
    assert (prefill.bound, prefill.percent) == (100, 50)


def test_this_machine_has_a_plausible_bandwidth_and_rate():
    machine = measure_machine()
    assert 1e9 < machine.read_bandwidth < 5e12
    assert 1e9 < machine.float_rate < 1e14
    assert 1e9 < machine.integer_rate < 1e15
    assert machine.best(Machine(9, 1.0, 1e20, 1.0)) == Machine(
        machine.threads, machine.read_bandwidth, 1e20, machine.integer_rate
    )
