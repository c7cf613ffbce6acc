"""Rules for operators that move numbers without changing them, make shapes, or sum along axes."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from onnxforge.compiler.torch_call import Call, Made, Rule

Reduce = Callable[[torch.Tensor, tuple[int, ...], bool], torch.Tensor]
_FAR = 1 << 62
"""ONNX writes "to the end" as any very large number."""


def _constant(call: Call) -> Made:
    attributes = call.node.attributes
    if (tensor := attributes.get("value")) is not None:
        return torch.from_numpy(np.array(tensor.as_tensor().numpy()))
    for name, dtype in (("value_int", torch.int64), ("value_float", torch.float32)):
        if name in attributes:
            return torch.tensor(attributes[name].value, dtype=dtype)
    for name, dtype in (("value_ints", torch.int64), ("value_floats", torch.float32)):
        if name in attributes:
            return torch.tensor(list(attributes[name].value), dtype=dtype)
    raise call.refusal("its value is no number")


def _constant_of_shape(call: Call) -> Made:
    shape = [int(item) for item in call.tensor().tolist()]
    value = call.node.attributes.get("value")
    if value is None:
        return torch.zeros(shape)
    item = torch.from_numpy(np.array(value.as_tensor().numpy())).reshape(())
    return item.expand(shape).clone()


def _shape(call: Call) -> Made:
    size = list(call.tensor().shape)
    end = call.integer("end", _FAR)
    return torch.tensor(size[call.integer("start", 0) : end], dtype=torch.int64)


def _range(call: Call) -> Made:
    start, limit, delta = (call.tensor(index) for index in range(3))
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def _reshape(call: Call) -> Made:
    data, wanted = call.tensor(), call.numbers(1, "shape") or []
    if not call.integer("allowzero", 0):
        wanted = [data.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)]
    return data.reshape(wanted)


def _flatten(call: Call) -> Made:
    data, axis = call.tensor(), call.integer("axis", 1)
    axis = axis + data.dim() if axis < 0 else axis
    rows = int(np.prod(data.shape[:axis], dtype=np.int64))
    return data.reshape(rows, data.numel() // rows if rows else 0)


def _transpose(call: Call) -> Made:
    data, perm = call.tensor(), call.numbers(1, "perm")
    return data.permute(perm if perm is not None else tuple(range(data.dim()))[::-1])


def _unsqueeze(call: Call) -> Made:
    data, axes = call.tensor(), call.numbers(1, "axes") or []
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _squeeze(call: Call) -> Made:
    data, axes = call.tensor(), call.numbers(1, "axes")
    if axes is None:
        return data.squeeze()
    return data.squeeze(tuple(axis % data.dim() for axis in axes)) if axes else data


def _expand(call: Call) -> Made:
    data = call.tensor()
    return data.expand(np.broadcast_shapes(tuple(data.shape), tuple(call.numbers(1, "shape") or ())))


def _tile(call: Call) -> Made:
    return call.tensor().repeat(call.numbers(1, "repeats") or [])


def _concat(call: Call) -> Made:
    return torch.cat([call.tensor(index) for index in range(len(call.inputs))], dim=call.integer("axis", 0))


def _split(call: Call) -> Made:
    data, axis, parts = call.tensor(), call.integer("axis", 0), len(call.node.outputs)
    sizes = call.numbers(1, "split")
    return torch.split(data, sizes if sizes is not None else -(-data.shape[axis] // parts), dim=axis)


def _slice(call: Call) -> Made:
    data = call.tensor()
    starts, ends = call.numbers(1, "starts") or [], call.numbers(2, "ends") or []
    axes = call.numbers(3, "axes")
    steps = call.numbers(4, "steps")
    for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[place] % data.dim() if axes is not None else place
        chosen = range(data.shape[axis])[slice(start, end, steps[place] if steps is not None else 1)]
        if chosen.step == 1:
            data = data.narrow(axis, chosen.start, len(chosen))
        else:
            data = data.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64))
    return data


def _gather(call: Call) -> Made:
    data, indices = call.tensor(0), call.tensor(1).long()
    axis = call.integer("axis", 0) % data.dim()
    flat = torch.where(indices < 0, indices + data.shape[axis], indices).reshape(-1)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return data.index_select(axis, flat).reshape(shape)


def _gather_elements(call: Call) -> Made:
    data, indices = call.tensor(0), call.tensor(1).long()
    axis = call.integer("axis", 0)
    return torch.gather(data, axis, torch.where(indices < 0, indices + data.shape[axis], indices))


def _cumulative_sum(call: Call) -> Made:
    data, axis = call.tensor(), int(call.tensor(1).item())
    ordered = data.flip(axis) if call.integer("reverse", 0) else data
    total = ordered.cumsum(axis, dtype=data.dtype)
    total = total - ordered if call.integer("exclusive", 0) else total
    return total.flip(axis) if call.integer("reverse", 0) else total


def _triangle(call: Call) -> Made:
    diagonal = call.optional(1)
    function = torch.triu if call.integer("upper", 1) else torch.tril
    return function(call.tensor(), int(diagonal.item()) if diagonal is not None else 0)


def _einsum(call: Call) -> Made:
    operands = [call.tensor(index) for index in range(len(call.inputs))]
    result: torch.Tensor = torch.einsum(call.string("equation", ""), *operands)
    return result


def _reduce(function: Reduce) -> Rule:
    def run(call: Call) -> Made:
        data, axes = call.tensor(), call.numbers(1, "axes")
        if not axes and call.integer("noop_with_empty_axes", 0):
            return data
        dims = tuple(axes) if axes else tuple(range(data.dim()))
        return function(data, dims, bool(call.integer("keepdims", 1)))

    return run


_RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "CumSum": _cumulative_sum,
    "Dropout": lambda call: call.tensor(),
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Range": _range,
    "ReduceMax": _reduce(lambda data, axes, keep: data.amax(axes, keep)),
    "ReduceMean": _reduce(lambda data, axes, keep: data.mean(axes, keep)),
    "ReduceMin": _reduce(lambda data, axes, keep: data.amin(axes, keep)),
    "ReduceSum": _reduce(lambda data, axes, keep: data.sum(axes, keep, dtype=data.dtype)),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": lambda call: torch.tensor(call.tensor().numel()),
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _triangle,
    "Unsqueeze": _unsqueeze,
}
MOVEMENT: Mapping[tuple[str, str], Rule] = {("", name): rule for name, rule in _RULES.items()}
