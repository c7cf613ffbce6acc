"""When a node is beyond a limit of its CUDA kernel: one rule for each row of ``cuda_limits.toml``.

A rule gives what it found, in words, or nothing. What is not known, such as an open size, breaks no limit.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxforge.compiler.left_quantizers import sides_of, takes_up_weights_alone
from onnxforge.passes.constants import integers, readable
from onnxforge.passes.matching import input_at, int_attribute, rank, static_dim

Condition = Callable[[ir.Node], str]

_EIGHT, _ROTATED, _WIDEST_INTEGER_HEAD, _WIDEST_ROTATED = 8, 16, 256, 1024
_PAST, _COS, _SCORES = 3, 7, 3
_WEIGHT_BITS = (2, 4, 8)
_LONGEST_BLOCK = {2: 256, 4: 128}
_NARROW = 4
_BYTES = (ir.DataType.INT8, ir.DataType.UINT8)
_SKIP_RANKS = (2, 3)
_UNTOUCHED, _PLANES, _MOST_LINEAR, _CUBIC_RANKS = 2, (4, 5), 5, (2, 4)
_USUAL = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}
_UNKNOWN_TO_CUDNN = ("activation_alpha", "activation_beta", "clip")
_PEEPHOLES = 7


def _gives(node: ir.Node, index: int) -> bool:
    """Whether an optional output is asked for."""
    return index < len(node.outputs) and bool(node.outputs[index].name)


def _rank(node: ir.Node) -> int | None:
    value = node.inputs[0]
    return rank(value) if value is not None else None


def _mode(node: ir.Node) -> str:
    attribute = node.attributes.get("mode")
    return attribute.as_string() if attribute is not None else "nearest"


def _head(node: ir.Node) -> int | None:
    """How wide a head of GroupQueryAttention is: by its cache, or by what it is asked."""
    stored = static_dim(input_at(node, _PAST), -1)
    if stored is not None:
        return 2 * stored if int_attribute(node, "kv_cache_bit_width", 0) == _NARROW else stored
    width, heads = static_dim(input_at(node, 0), -1), int_attribute(node, "num_heads", 0)
    if input_at(node, 1) is None:
        heads += 2 * int_attribute(node, "kv_num_heads", 0)
    return width // heads if width is not None and heads else None


def _head_multiple(node: ir.Node) -> str:
    width = _head(node)
    return f"heads of {width}" if width is not None and width % _EIGHT else ""


def _head_groups(node: ir.Node) -> str:
    queries, keys = int_attribute(node, "num_heads", 0), int_attribute(node, "kv_num_heads", 0)
    return f"{queries} query heads for {keys} key heads" if not keys or queries % keys else ""


def _rotary_width(node: ir.Node) -> str:
    head, width = _head(node), static_dim(input_at(node, _COS), -1)
    if not int_attribute(node, "do_rotary", 0) or width is None:
        return ""
    too_wide = head is not None and width > head // 2
    return f"tables {width} wide for heads of {head}" if width % _EIGHT or too_wide else ""


def _rotary_heads(node: ir.Node) -> str:
    head = _head(node)
    odd = head is not None and head % _ROTATED and input_at(node, _COS) is not None
    return f"heads of {head}" if odd else ""


def _attention_scores(node: ir.Node) -> str:
    return "scores as an output" if _gives(node, _SCORES) else ""


def _integer_cache_heads(node: ir.Node) -> str:
    past, width = input_at(node, _PAST), _head(node)
    integers = past is not None and past.dtype in _BYTES
    return f"heads of {width}" if integers and width is not None and width > _WIDEST_INTEGER_HEAD else ""


def _score_mode(node: ir.Node) -> str:
    mode = int_attribute(node, "qk_matmul_output_mode", 0)
    return f"scores of mode {mode}" if mode and _gives(node, _SCORES) else ""


def _weight_bits(node: ir.Node) -> str:
    bits = int_attribute(node, "bits", 4)
    return f"{bits} bits" if bits not in _WEIGHT_BITS else ""


def _weight_blocks(node: ir.Node) -> str:
    bits, block = int_attribute(node, "bits", 4), int_attribute(node, "block_size", 0)
    return f"blocks of {block} in {bits} bits" if block > _LONGEST_BLOCK.get(bits, block) else ""


def _weight_order(node: ir.Node) -> str:
    return (
        "group indices" if int_attribute(node, "bits", 4) == min(_WEIGHT_BITS) and input_at(node, 4) else ""
    )


def _gathered_blocks(node: ir.Node) -> str:
    axes, axis = _rank(node), int_attribute(node, "quantize_axis", 1)
    return f"blocks along axis {axis} of {axes}" if axes and axis % axes != axes - 1 else ""


def _blocks_of_bytes(node: ir.Node) -> str:
    integers = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    block = int_attribute(node, "block_size", 0)
    if not block or integers is None or integers.dtype not in _BYTES:
        return ""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    if readers and all(r.op_type == "MatMul" and takes_up_weights_alone(sides_of(r)) for r in readers):
        return ""  # ONNX Runtime makes MatMulNBits of both when it loads the graph
    return f"blocks of {block} in {integers.dtype.name.lower()}"


def _skip_rank(node: ir.Node) -> str:
    axes = _rank(node)
    return f"{axes} axes" if axes is not None and axes not in _SKIP_RANKS else ""


def _skip_broadcast(node: ir.Node) -> str:
    value, skip = node.inputs[0], input_at(node, 1)
    sizes = [(static_dim(value, axis), static_dim(skip, axis)) for axis in (-2, -1)]
    apart = any(a is not None and b is not None and a != b for a, b in sizes)
    return f"{[b for _, b in sizes]} beside {[a for a, _ in sizes]}" if apart else ""


def _rotated_head(node: ir.Node) -> str:
    value, heads = node.inputs[0], int_attribute(node, "num_heads", 0)
    width = static_dim(value, -1)
    if width is not None and _rank(node) == 3 and heads:
        width //= heads
    return f"heads of {width}" if width is not None and width > _WIDEST_ROTATED and _by_head(node) else ""


def _by_head(node: ir.Node) -> bool:
    """Whether the last axis is one head, or how many there are is told."""
    return _rank(node) == 4 or bool(int_attribute(node, "num_heads", 0))


def _resized_axes(node: ir.Node) -> str:
    axes = _rank(node)
    if _mode(node) != "linear" or axes is None:
        return ""
    if axes > _MOST_LINEAR:
        return f"{axes} axes"
    scales = readable(input_at(node, 2))
    if scales is None or axes not in _PLANES or scales.size != axes:
        return ""
    last = scales[0] == scales[-1] == 1 and axes == min(_PLANES)
    return "" if np.all(scales[:_UNTOUCHED] == 1) or last else f"factors {scales.tolist()}"


def _cubic_rank(node: ir.Node) -> str:
    axes = _rank(node)
    cubic = _mode(node) == "cubic"
    return f"{axes} axes" if cubic and axes is not None and axes not in _CUBIC_RANKS else ""


def _last_of_equals(node: ir.Node) -> str:
    return "select_last_index" if int_attribute(node, "select_last_index", 0) else ""


def _recurrent_form(node: ir.Node) -> str:
    known = node.attributes
    odd = [name for name in _UNKNOWN_TO_CUDNN if name in known]
    if "activations" in known:
        given = [name.lower() for name in known["activations"].as_strings()]
        usual = _USUAL[node.op_type]
        odd += ["activations"] if any(kind != usual[i % len(usual)] for i, kind in enumerate(given)) else []
    if node.op_type == "LSTM":
        odd += ["input_forget"] if int_attribute(node, "input_forget", 0) else []
        odd += ["peepholes"] if input_at(node, _PEEPHOLES) is not None else []
    elif not int_attribute(node, "linear_before_reset", 0):
        odd.append("linear_before_reset 0")
    return ", ".join(odd)


def _always(node: ir.Node) -> str:
    return node.op_type


def _recurrence(node: ir.Node) -> str:
    return "" if _recurrent_form(node) else node.op_type


def _middle(node: ir.Node) -> str:
    """Axes that are neither the first ones nor the last: the others have a kernel of their own."""
    axes, reduced = _rank(node), _reduced(node)
    if axes is None or not reduced:
        return ""
    chosen = sorted(axis % axes for axis in reduced)
    first, last = list(range(len(chosen))), list(range(axes - len(chosen), axes))
    return "" if chosen in (first, last) else f"{node.op_type} over {chosen} of {axes}"


def _reduced(node: ir.Node) -> Sequence[int]:
    attribute = node.attributes.get("axes")
    return attribute.as_ints() if attribute is not None else integers(input_at(node, 1)) or ()


def _choice(node: ir.Node) -> str:
    axes, axis = _rank(node), int_attribute(node, "axis", 0)
    if not axes or axis % axes == axes - 1 or _last_of_equals(node):
        return ""
    return f"{node.op_type} over axis {axis} of {axes}"


CONDITIONS: Mapping[str, Condition] = {
    "head-multiple": _head_multiple,
    "head-groups": _head_groups,
    "rotary-width": _rotary_width,
    "rotary-heads": _rotary_heads,
    "attention-scores": _attention_scores,
    "integer-cache-heads": _integer_cache_heads,
    "score-mode": _score_mode,
    "weight-bits": _weight_bits,
    "weight-blocks": _weight_blocks,
    "weight-order": _weight_order,
    "gathered-blocks": _gathered_blocks,
    "blocks-of-bytes": _blocks_of_bytes,
    "skip-rank": _skip_rank,
    "skip-broadcast": _skip_broadcast,
    "rotated-head": _rotated_head,
    "resized-axes": _resized_axes,
    "cubic-rank": _cubic_rank,
    "last-of-equals": _last_of_equals,
    "recurrent-form": _recurrent_form,
    "cudnn-attention": _always,
    "cudnn-convolution": _always,
    "cudnn-recurrence": _recurrence,
    "cudnn-einsum": _always,
    "cudnn-reduction": _always,
    "cudnn-middle": _middle,
    "cudnn-choice": _choice,
}
