"""One attention form for every family: opset-23 ``Attention`` under one boolean mask per distinct window.

transformers lets a library register its own attention and mask functions by name. Ours emit the ONNX operator
itself and a mask made of positions and the padding mask, with no data-dependent code, so that every family
traces, and every family looks the same to the passes::

    past_key -- Concat(axis=2) -- present_key --.
    past_value - Concat ------- present_value ---+-- Attention(q, k, v, mask; scale, softcap)
    attention_mask, shapes --- mask [B,1,S,T] --'
"""

import functools
from typing import TYPE_CHECKING, cast

from onnxforge.models.errors import UnsupportedModel

if TYPE_CHECKING:
    import torch

NAME = "onnxforge"
"""The value of ``config._attn_implementation`` that selects the functions of this module."""


@functools.cache
def register() -> None:
    """Make :func:`attention` and :func:`attention_mask` known to transformers as :data:`NAME`."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    softcap: float | None = None,
    **unused: object,
) -> "tuple[torch.Tensor, None]":
    """Scaled dot-product attention as one opset-23 ``Attention`` node.

    Shapes: query [B, H, S, D]; key, value [B, KV, T, D]; attention_mask broadcastable to [B, H, S, T],
    boolean (True takes part) or float (added to the scores). Returns [B, S, H, D] and no weights.
    """
    import torch

    output = torch.onnx.ops.attention(
        query, key, value, attention_mask, scale=scaling, softcap=softcap or 0.0
    )
    return output[0].transpose(1, 2), None


def attention_mask(
    *,
    q_length: "int | torch.SymInt",
    kv_length: "int | torch.SymInt",
    q_offset: "int | torch.SymInt" = 0,
    attention_mask: "torch.Tensor",
    local_size: int | None = None,
    use_vmap: bool = False,
    device: "torch.device | None" = None,
    **details: object,
) -> "torch.Tensor":
    """The mask of one window, boolean, True where a query may look.

    Causal: [B, 1, S, T], ``(kv <= q) & (kv > q - window) & padding``, with ``q`` counted in slots (past
    length plus index, not ``position_ids``), or-ed with the diagonal so that the row of a padding token is
    never empty and gives no NaN. Bidirectional: the padding mask [B, 1, 1, T] expanded to
    [B, 1, S, T], and-ed with ``|q - kv| <= window`` where the layer is local.

    Raises:
        UnsupportedModel: the model adds a mask rule of its own.
    """
    import torch

    if use_vmap:
        raise UnsupportedModel(
            "the model adds its own rule to the attention mask (for example use_bidirectional_attention), "
            "and only causal, bidirectional and sliding-window masks are exported. Turn that option off in "
            "config.json."
        )
    padding = attention_mask[:, None, None, :].to(torch.bool)
    # Only the bidirectional builders of transformers pass this keyword: it is how they tell themselves apart.
    causal = "allow_is_bidirectional_skip" not in details
    if not causal and local_size is None:
        # ONNX Runtime's Attention broadcasts a mask over batch and heads, not over queries.
        return padding.expand(-1, 1, cast("int", q_length), -1)
    # torch types its sizes as plain numbers; a traced size behaves as one.
    q = torch.arange(cast("int", q_length), device=device)[:, None] + cast("int", q_offset)
    kv = torch.arange(cast("int", kv_length), device=device)[None, :]
    diagonal = torch.eq(q, kv)[None, None]
    if not causal:
        near = torch.le((q - kv).abs(), cast("int", local_size))
        return near[None, None] & padding | diagonal
    allowed = torch.le(kv, q)
    if local_size is not None:
        allowed = allowed & torch.gt(kv, q - local_size)
    return allowed[None, None] & padding | diagonal
