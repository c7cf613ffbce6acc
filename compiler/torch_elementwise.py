"""Rules for operators that work number by number, or on rows: arithmetic, logic, activations, norms."""

from collections.abc import Callable, Mapping

import torch
from torch.nn import functional

from onnxforge.compiler.torch_call import DTYPES, Call, Made, Rule

Binary = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_SINCE_AXES = 13
"""Softmax looks along one axis since opset 13; before, at everything from an axis on."""


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Rule:
    return lambda call: function(call.tensor())


def _binary(function: Binary) -> Rule:
    return lambda call: function(call.tensor(0), call.tensor(1))


def _variadic(function: Binary) -> Rule:
    def run(call: Call) -> Made:
        result = call.tensor(0)
        for index in range(1, len(call.inputs)):
            result = function(result, call.tensor(index))
        return result

    return run


def _divide(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Integers are divided towards zero, as C does."""
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _power(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.pow(a, b).to(a.dtype)


def _modulo(call: Call) -> Made:
    function = torch.fmod if call.integer("fmod", 0) else torch.remainder
    return function(call.tensor(0), call.tensor(1))


def _cast(call: Call) -> Made:
    wanted = call.integer("to", 0)
    dtype = next((torch_dtype for onnx, torch_dtype in DTYPES.items() if onnx.value == wanted), None)
    if dtype is None:
        raise call.refusal(f"data type {wanted} has no counterpart")
    return call.tensor().to(dtype)


def _clip(call: Call) -> Made:
    low, high = call.optional(1), call.optional(2)
    if low is None and "min" in call.node.attributes:
        low = torch.tensor(call.number("min", 0.0))
    if high is None and "max" in call.node.attributes:
        high = torch.tensor(call.number("max", 0.0))
    result = call.tensor()
    result = result if low is None else torch.maximum(result, low.to(result.dtype))
    return result if high is None else torch.minimum(result, high.to(result.dtype))


def _softmax(function: Callable[[torch.Tensor, int], torch.Tensor]) -> Rule:
    def run(call: Call) -> Made:
        data = call.tensor()
        if call.opset >= _SINCE_AXES:
            return function(data, call.integer("axis", -1))
        rows = data.flatten(call.integer("axis", 1) % data.dim())
        return function(rows, -1).reshape(data.shape)

    return run


def _gelu(call: Call) -> Made:
    return functional.gelu(_biased(call), approximate=call.string("approximate", "none"))


def _fast_gelu(call: Call) -> Made:
    return functional.gelu(_biased(call), approximate="tanh")


def _biased(call: Call) -> torch.Tensor:
    bias = call.optional(1)
    return call.tensor() if bias is None else call.tensor() + bias


def _quick_gelu(call: Call) -> Made:
    data, alpha = call.tensor(), call.number("alpha", 1.702)
    return functional.silu(data) if alpha == 1 else data * torch.sigmoid(alpha * data)


def _swish(call: Call) -> Made:
    return call.tensor() * torch.sigmoid(call.number("alpha", 1.0) * call.tensor())


def _rms_norm(call: Call) -> Made:
    return _rms(call, call.tensor(), call.tensor(1))


def _rms(call: Call, data: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    axes = tuple(range(call.integer("axis", -1) % data.dim(), data.dim()))
    mean = data.float().square().mean(dim=axes, keepdim=True)
    normalised = data.float() * torch.rsqrt(mean + call.number("epsilon", 1e-5))
    return normalised.to(data.dtype) * scale


def _layer_norm(call: Call) -> Made:
    data = call.tensor()
    shape = tuple(data.shape[call.integer("axis", -1) % data.dim() :])
    weight, bias, epsilon = call.tensor(1), call.optional(2), call.number("epsilon", 1e-5)
    if weight.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(data, shape, weight, bias, epsilon)
    plain = functional.layer_norm(data, shape, None, None, epsilon) * weight
    return plain if bias is None else plain + bias


def _skip_norm(*, centred: bool) -> Rule:
    """``norm(input + skip [+ bias])``; output 3 is the sum."""

    def run(call: Call) -> Made:
        total = call.tensor(0) + call.tensor(1)
        bias = call.optional(4 if centred else 3)
        total = total if bias is None else total + bias
        if centred:
            width, epsilon = (total.shape[-1],), call.number("epsilon", 1e-5)
            result = functional.layer_norm(total, width, call.tensor(2), call.optional(3), epsilon)
        else:
            result = _rms(call, total, call.tensor(2))
        empty = total.new_empty(0)
        return result, empty, empty, total

    return run


def _gemm(call: Call) -> Made:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    a = a.T if call.integer("transA", 0) else a
    b = b.T if call.integer("transB", 0) else b
    product = call.number("alpha", 1.0) * (a @ b)
    return product if c is None else product + call.number("beta", 1.0) * c


_MAIN: Mapping[str, Rule] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": _cast,
    "CastLike": lambda call: call.tensor(0).to(call.tensor(1).dtype),
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _binary(_divide),
    "Elu": lambda call: functional.elu(call.tensor(), call.number("alpha", 1.0)),
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "Identity": _unary(lambda data: data),
    "IsNaN": _unary(torch.isnan),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda call: functional.leaky_relu(call.tensor(), call.number("alpha", 0.01)),
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(torch.log_softmax),
    "MatMul": _binary(torch.matmul),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mod": _modulo,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": _binary(_power),
    "RMSNormalization": _rms_norm,
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(functional.relu),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "SimplifiedLayerNormalization": _rms_norm,
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(torch.softmax),
    "Softplus": _unary(functional.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": _variadic(torch.add),
    "Swish": _swish,
    "Tanh": _unary(torch.tanh),
    "Where": lambda call: torch.where(call.tensor(0), call.tensor(1), call.tensor(2)),
    "Xor": _binary(torch.logical_xor),
}
_CONTRIB: Mapping[str, Rule] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "Gelu": _gelu,
    "QuickGelu": _quick_gelu,
    "SimplifiedLayerNormalization": _rms_norm,
    "SkipLayerNormalization": _skip_norm(centred=True),
    "SkipSimplifiedLayerNormalization": _skip_norm(centred=False),
}
ELEMENTWISE: Mapping[tuple[str, str], Rule] = {
    **{("", name): rule for name, rule in _MAIN.items()},
    **{("com.microsoft", name): rule for name, rule in _CONTRIB.items()},
}
