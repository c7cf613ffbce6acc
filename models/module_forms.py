"""Modules whose own code would not trace to the form that the passes expect, and what runs instead.

Each function stands in for the ``forward`` of the transformers class it is listed under; weights and results
are the same.
"""

import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

from onnxforge.models import attention_form

if TYPE_CHECKING:
    import torch


def use_forms(model: "torch.nn.Module") -> None:
    """Replace the forward of every module of ``model`` that has a form of its own here."""
    for module in model.modules():
        form = FORMS.get(type(module).__name__)
        if form is not None:
            module.forward = types.MethodType(form, module)


def _conv1d(module: "torch.nn.Module", x: "torch.Tensor") -> "torch.Tensor":
    """GPT-2's linear layer (weight [in, out]) as MatMul and Add on [B, S, in], without flattening to 2-D."""
    import torch

    return torch.matmul(x, module.get_parameter("weight")) + module.get_parameter("bias")


def _mpnet_attention(
    module: "torch.nn.Module",
    hidden_states: "torch.Tensor",
    attention_mask: "torch.Tensor",
    position_bias: "torch.Tensor",
    **unused: object,
) -> "tuple[torch.Tensor]":
    """MPNet's attention: the relative-position bias [B, H, S, T] and the padding in one float mask."""
    import torch

    heads, head_size = cast("int", module.num_attention_heads), cast("int", module.attention_head_size)
    shape = (*hidden_states.shape[:-1], heads, head_size)
    q, k, v = (
        module.get_submodule(name)(hidden_states).view(shape).transpose(1, 2) for name in ("q", "k", "v")
    )
    never = torch.finfo(position_bias.dtype).min
    bias = torch.where(attention_mask, position_bias, never)
    context, _ = attention_form.attention(module, q, k, v, bias, scaling=head_size**-0.5)
    output: torch.Tensor = module.get_submodule("o")(
        context.reshape(*hidden_states.shape[:-1], heads * head_size)
    )
    return (output,)


FORMS: Mapping[str, Callable[..., object]] = types.MappingProxyType(
    {"Conv1D": _conv1d, "MPNetSelfAttention": _mpnet_attention}
)
"""By name of the transformers class."""
