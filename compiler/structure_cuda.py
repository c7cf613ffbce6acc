"""What the CUDA provider asks of a graph, rule by rule."""

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from onnxforge.compiler import cuda_kernels
from onnxforge.compiler.left_quantizers import sides_of, takes_up_weights_alone
from onnxforge.compiler.structure_check import (
    FLOATS,
    HALVES,
    Rule,
    StructureCheck,
    listed,
    operator_name,
    touches,
)

_TILE, _BYTE = 32, 8
_PRODUCTS = ("MatMul", "Gemm", "MatMulNBits")
_ZERO_POINTS, _GROUPS, _BIAS = 3, 4, 5
_PAST, _CACHE_SCALES = 3, (12, 13)
_DIRECT_HEADS, _DIRECT_GROUPS = (64, 128, 256), (4, 8, 16, 32)


def _kernels(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """An operator without a kernel is computed on the CPU: right, but with copies there and back."""
    graph = nodes[0].graph if nodes else None
    opsets = graph.opset_imports if graph is not None else {}
    computing = [node for node in nodes if node.op_type != "Constant"]
    lacking = Counter(
        operator_name(node)
        for node in computing
        if cuda_kernels.kernel_for(node, opsets.get("" if node.domain == "ai.onnx" else node.domain, 1))
        is None
    )
    kinds = len({operator_name(node) for node in computing})
    return StructureCheck(
        rule="every operator has a CUDA kernel for its type",
        found=listed(lacking) or f"all {kinds} kinds of operator are in the {cuda_kernels.SOURCE}",
        held=not lacking,
        required=False,
    )


def _no_dequantized_products(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """CUDA fuses weights alone, and nothing else: it would dequantize again in every step."""
    broken = Counter(
        f"{node.op_type} {around} {node.name}"
        for node in nodes
        if node.op_type in _PRODUCTS
        for around in _quantizers_around(node)
    )
    return StructureCheck(
        rule="no QuantizeLinear or DequantizeLinear around a MatMul",
        found=listed(broken) or f"none around {sum(node.op_type in _PRODUCTS for node in nodes)} products",
        held=not broken,
        required=True,
    )


def _attention_in_half(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """GroupQueryAttention has CUDA kernels for float16 and bfloat16, and none for float32."""
    attentions = [node for node in nodes if node.op_type == "GroupQueryAttention"]
    broken = Counter(
        f"{node.name} in {node.inputs[0].dtype}"
        for node in attentions
        if node.inputs[0] is not None and node.inputs[0].dtype not in HALVES
    )
    return StructureCheck(
        rule="GroupQueryAttention runs in float16 or bfloat16",
        found=listed(broken) or f"all {len(attentions)}",
        held=not broken,
        required=True,
    )


def _wide_values(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """Float32 in between is no fault, but it is slower, and nobody should have to guess that it is there."""
    wide = Counter(
        operator_name(node) for node in nodes if touches(node, ir.DataType.FLOAT) and node.op_type != "Cast"
    )
    floating = sum(touches(node, *FLOATS) for node in nodes)
    return StructureCheck(
        rule="floating point is float16",
        found=listed(wide) or f"all {floating} operators on floating point",
        held=not wide,
        required=False,
    )


def _mixed_products(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """What the fp16 x int4/int8 multiplication takes (session option ``ep.cuda.fpa_intb_gemm``)."""
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    broken = Counter(f"{objection} ({node.name})" for node in products if (objection := _slow(node)))
    return StructureCheck(
        rule="MatMulNBits fits the fused float16 x integer kernel",
        found=listed(broken) or f"all {len(products)}",
        held=not broken,
        required=False,
    )


def _integer_cache(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """``GroupQueryAttention<float16, int8>``: int8 on both sides, and scales that stay float32."""
    attentions = [node for node in nodes if _has_integer_cache(node)]
    broken = Counter(f"{objection} ({node.name})" for node in attentions if (objection := _misfit(node)))
    return StructureCheck(
        rule="an int8 cache fits its attention kernel",
        found=listed(broken) or (f"all {len(attentions)}" if attentions else "no cache is int8"),
        held=not broken,
        required=True,
    )


def _direct_cache(nodes: tuple[ir.Node, ...]) -> StructureCheck:
    """The decoding kernel that reads int8 itself (XQA) is made for these shapes: onnxruntime pull 29900."""
    attentions = [node for node in nodes if _has_integer_cache(node)]
    broken = Counter(objection for node in attentions if (objection := _indirect(node)))
    return StructureCheck(
        rule="decoding reads an int8 cache as it is, without dequantizing it all for every token",
        found=listed(broken) or (f"all {len(attentions)}" if attentions else "no cache is int8"),
        held=not broken,
        required=False,
    )


def _has_integer_cache(node: ir.Node) -> bool:
    past = node.inputs[_PAST] if node.op_type == "GroupQueryAttention" else None
    return past is not None and past.dtype is not None and not past.dtype.is_floating_point()


def _misfit(node: ir.Node) -> str:
    caches = [*node.inputs[_PAST : _PAST + 2], *node.outputs[1:3]]
    scales = [node.inputs[index] if index < len(node.inputs) else None for index in _CACHE_SCALES]
    bits = node.attributes.get("kv_cache_bit_width")
    reasons = (
        (any(v is None or v.dtype is not ir.DataType.INT8 for v in caches), "past or present is not int8"),
        (any(v is None or v.dtype is not ir.DataType.FLOAT for v in scales), "scales are not float32"),
        (bits is None or bits.as_int() != _BYTE, "kv_cache_bit_width is not 8"),
    )
    return ", ".join(text for applies, text in reasons if applies)


def _indirect(node: ir.Node) -> str:
    past, attributes = node.inputs[_PAST], node.attributes
    width = past.shape[3] if past is not None and past.shape is not None else None
    group = attributes["num_heads"].as_int() // attributes["kv_num_heads"].as_int()
    softcap = attributes.get("softcap")
    reasons = (
        (width not in _DIRECT_HEADS, f"heads of {width}, it knows {_DIRECT_HEADS}"),
        (group not in _DIRECT_GROUPS, f"{group} query heads for each key head, it knows {_DIRECT_GROUPS}"),
        (softcap is not None and softcap.as_float() != 0, "soft-capped scores"),
    )
    return ", ".join(text for applies, text in reasons if applies)


def _slow(node: ir.Node) -> str:
    """Why a MatMulNBits takes the path over a dequantized copy, or nothing."""
    number = {name: node.attributes[name].as_int() for name in ("K", "N", "bits", "block_size")}
    scales = node.inputs[2]
    present = {index for index, value in enumerate(node.inputs) if value is not None}
    reasons = (
        (number["block_size"] != _TILE, f"block_size {number['block_size']}"),
        (
            number["N"] % _TILE or number["K"] % _TILE,
            f"{number['K']} x {number['N']} is no multiple of {_TILE}",
        ),
        (_ZERO_POINTS in present, "zero points"),
        (_GROUPS in present, "group indices"),
        (_BIAS in present, "a bias inside"),
        (scales is None or scales.dtype not in HALVES, "scales that are not float16"),
    )
    return ", ".join(text for applies, text in reasons if applies)


def _quantizers_around(node: ir.Node) -> Iterable[str]:
    parents = [value.producer() for value in node.inputs if value is not None]
    restored = any(parent is not None and parent.op_type == "DequantizeLinear" for parent in parents)
    if restored and not takes_up_weights_alone(sides_of(node)):
        yield "after DequantizeLinear"
    if any(user.op_type == "QuantizeLinear" for user, _ in node.outputs[0].uses()):
        yield "before QuantizeLinear"


RULES: tuple[Rule, ...] = (
    _kernels, _no_dequantized_products, _attention_in_half, _wide_values, _mixed_products, _integer_cache,
        _direct_cache,
)  # fmt: skip
