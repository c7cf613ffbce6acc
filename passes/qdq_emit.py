"""Write QuantizeLinear and DequantizeLinear into one graph; no decisions are made here."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxforge.passes.activation_grid import ActivationGrid
from onnxforge.passes.constants import add_array, extents
from onnxforge.passes.linear_product import LinearProduct
from onnxforge.passes.matching import (
    drop_initializer,
    insert_after,
    is_op,
    make,
    only_use,
    rank,
    redirect,
    remove_dead,
)
from onnxforge.passes.qdq_scheme import TYPES, Granularity, WeightScheme
from onnxforge.passes.weight_grid import quantized

Attributes = dict[str, int | float | str]
_UNITS = ActivationGrid(step=1 / 127, zero=128, type=TYPES["uint8"])
"""Of what lies between -1 and 1. In uint8: with int8 ONNX Runtime's x86 kernels are several times slower."""
_LEAST = 1e-20
_QUANTIZE, _DEQUANTIZE, _DYNAMIC = "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"


@dataclass
class QdqWriter:
    """Writes into ``graph``; a value or a weight that several products read is quantized once."""

    graph: ir.Graph
    scheme: WeightScheme
    lift: bool = False
    """Give matrices that a bias is added to an axis more while they are multiplied.

    ONNX Runtime's CPU provider makes Gemm of MatMul and Add over matrices before it looks for integer
    products, and has no integer Gemm with a float result (1.31, measured); over three axes it has one.
    """
    _rounded: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)
    _sizes: dict[ir.Value, ir.Value] = field(default_factory=dict)
    """Of rounded data in units of its rows' sizes: these, [.., 1]."""
    _restored: dict[tuple[ir.Value, bool], ir.Value] = field(default_factory=dict)

    def weight_only(self, product: LinearProduct) -> None:
        """``data @ DQ(codes)``."""
        self._multiply(product, product.data, lifted=False)

    def static(self, product: LinearProduct, grid: ActivationGrid) -> None:
        """``DQ(Q(data)) @ DQ(codes)``, the data on ``grid``."""
        self._with_rounded(product, lambda data: self._on_grid(data, grid))

    def dynamic(self, product: LinearProduct) -> None:
        """``DQ(Q(data)) @ DQ(codes)``, the grid found anew in every call."""
        self._with_rounded(product, self._on_its_own_grid)

    def per_token(self, product: LinearProduct) -> None:
        """``(DQ(Q(data / size)) @ DQ(codes)) * size``, ``size`` being the largest magnitude of each row."""
        self._with_rounded(product, self._in_units)

    def _with_rounded(self, product: LinearProduct, write: Callable[[ir.Value], ir.Value]) -> None:
        data, lifted = product.data, self.lift and _would_be_gemm(product)
        key = (data, lifted)
        if key not in self._rounded:
            self._rounded[key] = write(self._lifted(data) if lifted else data)
        self._multiply(product, self._rounded[key], lifted=lifted, sizes=self._sizes.get(self._rounded[key]))

    def lookup(self, node: ir.Node, tensor: ir.TensorProtocol, axis: int) -> None:
        """``Gather(table, ids)`` with ids of ``axis`` axes as a lookup of codes, restored after it.

        A row has its own scales, one for all of it or one per block, and they are looked up like the codes.
        """
        table, ids, result = node.inputs[0], node.inputs[1], node.outputs[0]
        assert table is not None
        scheme, shape = self.scheme, extents(tensor)
        whole = scheme.granularity is Granularity.TENSOR
        if scheme.granularity is Granularity.CHANNEL:  # a row is one block to DequantizeLinear
            scheme = WeightScheme(scheme.type, Granularity.BLOCK, shape[1], scheme.symmetric)
        name = node.name or result.name or "lookup"
        parts = quantized(
            self.graph, f"{table.name}", tensor.numpy, (shape[0], shape[1]), scheme, by_rows=True
        )
        found = [
            part if index and whole else self._taken(node, part, ids, f"{name}/Gather_{index}")
            for index, part in enumerate(parts)
        ]
        attributes: Attributes = {} if whole else {"axis": axis, "block_size": scheme.block_size}
        last = make(_DEQUANTIZE, found, like=result, name=f"{name}/{_DEQUANTIZE}", attributes=attributes)
        self.graph.insert_before(node, last)
        redirect(result, last.outputs[0])
        remove_dead([node])

    def _multiply(
        self, product: LinearProduct, data: ir.Value, *, lifted: bool, sizes: ir.Value | None = None
    ) -> None:
        """The product over ``data``; a Gemm is taken apart, a plain MatMul only gets other operands."""
        node, weight, result = product.node, self._weight(product), product.node.outputs[0]
        if node.op_type == "MatMul" and not lifted and sizes is None:
            factor = node.inputs[1]
            node.replace_input_with(0, data)
            node.replace_input_with(1, weight)
            assert factor is not None
            maker = factor.producer()
            remove_dead([maker] if maker is not None else [])
            drop_initializer(factor)
            return
        new = [make("MatMul", (data, weight), like=result, name=f"{node.name}/MatMul")]
        if sizes is not None:
            new.append(make("Mul", (new[0].outputs[0], sizes), like=result, name=""))
        if lifted:
            for step in new:
                step.outputs[0].shape = None
            new.append(make("Squeeze", (new[-1].outputs[0], self._first_axis()), like=result, name=""))
        if product.bias is not None:
            new.append(make("Add", (new[-1].outputs[0], product.bias), like=result, name=""))
        for step in new[1:]:
            step.name = f"{node.name}/{step.op_type}"
        for step in new[:-1]:
            step.outputs[0].name = f"{result.name}.{step.op_type.lower()}"
        insert_after(node, *new)
        redirect(result, new[-1].outputs[0])
        remove_dead([node])

    def _lifted(self, data: ir.Value) -> ir.Value:
        """[1, R, K] of [R, K]."""
        shape = ir.Shape([1, *data.shape]) if data.shape is not None else None
        value = ir.Value(name=f"{data.name}.lifted", shape=shape, type=data.type)
        name = f"{data.name}/Unsqueeze"
        node = ir.Node("", "Unsqueeze", (data, self._first_axis()), outputs=(value,), name=name)
        self._after(data, node)
        return value

    def _first_axis(self) -> ir.Value:
        return add_array(self.graph, "first_axis", np.array([0], dtype=np.int64))

    def _weight(self, product: LinearProduct) -> ir.Value:
        """The weight [K, N], rounded; written in front of the first product that reads it."""
        key = (product.weight, product.turned)
        if key not in self._restored:
            stem = f"{product.weight.name}{'.turned' if product.turned else ''}"
            parts = quantized(self.graph, stem, product.matrix, product.size, self.scheme)
            attributes: Attributes = {}
            if self.scheme.granularity is Granularity.CHANNEL:
                attributes = {"axis": 1}
            elif self.scheme.granularity is Granularity.BLOCK:
                attributes = {"axis": 0, "block_size": self.scheme.block_size}
            value = ir.Value(
                name=f"{stem}.dequantized", shape=ir.Shape(product.size), type=product.weight.type
            )
            converted = ir.convenience.convert_attributes(attributes)
            node = ir.Node("", _DEQUANTIZE, parts, converted, outputs=(value,), name=f"{stem}/{_DEQUANTIZE}")
            self.graph.insert_before(product.node, node)
            self._restored[key] = value
        return self._restored[key]

    def _on_grid(self, data: ir.Value, grid: ActivationGrid) -> ir.Value:
        kind = grid.type.dtype
        parts = (
            add_array(self.graph, f"{data.name}.step", np.array(grid.step, dtype=np.float32)),
            add_array(self.graph, f"{data.name}.zero", np.array(grid.zero, dtype=kind.numpy())),
        )
        codes = ir.Value(name=f"{data.name}.q", shape=data.shape, type=ir.TensorType(kind))
        name = f"{data.name}/{_QUANTIZE}"
        quantize = ir.Node("", _QUANTIZE, (data, *parts), outputs=(codes,), name=name)
        return self._back(data, quantize, (codes, *parts))

    def _in_units(self, data: ir.Value) -> ir.Value:
        """``data`` over the largest magnitude of its row, rounded to 127 steps to each side of zero."""
        column = ir.Shape([*data.shape[:-1], 1]) if data.shape is not None else None
        magnitude, peak, size, units = (
            ir.Value(name=f"{data.name}.{suffix}", shape=shape, type=data.type)
            for suffix, shape in (
                ("magnitude", data.shape), ("peak", column), ("size", column), ("units", data.shape)
            )
        )  # fmt: skip
        axis = add_array(self.graph, "last_axis", np.array([-1], dtype=np.int64))
        least = add_array(self.graph, "least_size", np.array(_LEAST, dtype=np.float32))
        steps: tuple[tuple[str, tuple[ir.Value, ...], ir.Value], ...] = (
            ("Abs", (data,), magnitude),
            ("ReduceMax", (magnitude, axis), peak),
            ("Max", (peak, least), size),  # a row of padding may be all zero
            ("Div", (data, size), units),
        )
        nodes = [ir.Node("", op, read, outputs=(made,), name=f"{made.name}/{op}") for op, read, made in steps]
        self._after(data, *nodes)
        rounded = self._on_grid(units, _UNITS)
        self._sizes[rounded] = size
        return rounded

    def _on_its_own_grid(self, data: ir.Value) -> ir.Value:
        kinds = (("q", ir.DataType.UINT8), ("step", ir.DataType.FLOAT), ("zero", ir.DataType.UINT8))
        made = tuple(
            ir.Value(name=f"{data.name}.{suffix}", type=ir.TensorType(kind)) for suffix, kind in kinds
        )
        made[0].shape, made[1].shape, made[2].shape = data.shape, ir.Shape(()), ir.Shape(())
        quantize = ir.Node("", _DYNAMIC, (data,), outputs=made, name=f"{data.name}/{_DYNAMIC}")
        return self._back(data, quantize, made)

    def _back(self, data: ir.Value, quantize: ir.Node, parts: tuple[ir.Value, ...]) -> ir.Value:
        """``data`` restored from its codes, right after what makes it."""
        rounded = ir.Value(name=f"{data.name}.dq", shape=data.shape, type=data.type)
        name = f"{data.name}/{_DEQUANTIZE}"
        dequantize = ir.Node("", _DEQUANTIZE, parts, outputs=(rounded,), name=name)
        self._after(data, quantize, dequantize)
        return rounded

    def _after(self, data: ir.Value, *nodes: ir.Node) -> None:
        maker = data.producer()
        if maker is None:
            self.graph.insert_before(self.graph[0], nodes)
        else:
            insert_after(maker, *nodes)

    def _taken(self, node: ir.Node, part: ir.Value, ids: ir.Value | None, name: str) -> ir.Value:
        """The rows of ``part`` that ``ids`` ask for."""
        value = ir.Value(name=f"{name}_output", type=part.type)
        self.graph.insert_before(node, ir.Node("", "Gather", (part, ids), outputs=(value,), name=name))
        return value


def _would_be_gemm(product: LinearProduct) -> bool:
    if product.node.op_type == "Gemm":
        return True
    result = product.node.outputs[0]
    reader = only_use(result)
    return 2 in (rank(product.data), rank(result)) and reader is not None and is_op(reader, "Add")
