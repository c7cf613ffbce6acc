"""Rules for fused attention and rotary embeddings, over whole sequences: nothing is read from a cache."""

import math
from collections.abc import Mapping

import torch
from torch.nn import functional

from onnxforge.compiler.torch_call import Call, Made, Rule

_LOWEST = torch.finfo(torch.float32).min


def _rotate(data: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, interleaved: bool) -> torch.Tensor:
    """``data`` [B, H, S, D] turned by ``cos`` and ``sin`` [B or 1, 1, S, R/2] in its first R channels."""
    half = cos.shape[-1]
    turned, rest = data[..., : 2 * half], data[..., 2 * half :]
    if interleaved:
        real, imaginary = turned[..., ::2], turned[..., 1::2]
    else:
        real, imaginary = turned[..., :half], turned[..., half:]
    parts = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    turned = torch.stack(parts, dim=-1).flatten(-2) if interleaved else torch.cat(parts, dim=-1)
    return torch.cat((turned, rest), dim=-1)


def _angles(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rows of ``table`` [max, R/2] at ``positions`` [B or 1, S], as [B or 1, 1, S, R/2]."""
    return table[positions.long()].unsqueeze(1)


def _split_heads(data: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, S, H*D] as [B, H, S, D]."""
    return data.reshape(*data.shape[:-1], heads, data.shape[-1] // heads).transpose(1, 2)


def _merge_heads(data: torch.Tensor) -> torch.Tensor:
    """[B, H, S, D] as [B, S, H*D]."""
    return data.transpose(1, 2).flatten(2)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    bias: torch.Tensor | None = None,
    causal: bool = False,
    window: int = -1,
    softcap: float = 0.0,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of ``query`` [B, H, S, D] to ``key`` and ``value`` [B, KV, T, D].

    ``bias`` is added to the scores; ``window`` leaves each query that many keys, itself included; ``sink``
    [H] is a score that takes part in the softmax and has no value.
    """
    queries, keys = query.shape[2], key.shape[2]
    if (repeats := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    windowed = 0 <= window < keys
    if not (softcap or windowed or sink is not None or (causal and bias is not None)):
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, is_causal=causal and queries > 1, scale=scale
        )
    mask = _visible(queries, keys, window if windowed else keys) if causal else None
    if mask is not None:
        bias = torch.where(mask, 0.0 if bias is None else bias, torch.tensor(-math.inf))
    if not softcap and sink is None:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    scores = (query @ key.transpose(-1, -2)) * scale
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    scores = scores if bias is None else scores + bias
    if sink is None:
        return torch.softmax(scores, dim=-1) @ value
    extra = sink.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1).to(scores.dtype)
    return torch.softmax(torch.cat((scores, extra), dim=-1), dim=-1)[..., :keys] @ value


def _visible(queries: int, keys: int, window: int) -> torch.Tensor:
    """bool [S, T]: query s sees key t when ``s - window < t <= s``; the last query sees the last key."""
    place = torch.arange(queries)[:, None] + (keys - queries)
    other = torch.arange(keys)[None]
    return (other <= place) & (other > place - window)


def _group_query(call: Call) -> Made:
    heads, shared = call.integer("num_heads", 0), call.integer("kv_num_heads", 0)
    query, key, value = call.tensor(0), call.optional(1), call.optional(2)
    past = call.optional(3)
    if past is not None and past.shape[2]:
        raise call.refusal(f"its cache holds {past.shape[2]} tokens, and whole sequences are run")
    if any(call.optional(index) is not None for index in range(12, len(call.inputs))):
        raise call.refusal("its cache is quantized")
    if key is None or value is None:
        size = query.shape[-1] // (heads + 2 * shared)
        query, key, value = torch.split(query, [heads * size, shared * size, shared * size], dim=-1)
    query, key, value = (
        _split_heads(data, count) for data, count in ((query, heads), (key, shared), (value, shared))
    )
    if call.integer("do_rotary", 0):
        given = call.optional(9)
        positions = torch.arange(query.shape[2])[None] if given is None else given
        cos, sin = (_angles(call.tensor(index), positions) for index in (7, 8))
        interleaved = bool(call.integer("rotary_interleaved", 0))
        query = _rotate(query, cos, sin, interleaved=interleaved)
        key = _rotate(key, cos, sin, interleaved=interleaved)
    sink = call.optional(11)
    if sink is None and call.integer("smooth_softmax", 0) == 1:
        sink = torch.zeros(heads)
    result = _attend(
        query,
        key,
        value,
        scale=call.number("scale", 0.0) or 1 / math.sqrt(query.shape[-1]),
        bias=call.optional(10),
        causal=bool(call.integer("is_causal", 1)),
        window=call.integer("local_window_size", -1),
        softcap=call.number("softcap", 0.0),
        sink=sink,
    )
    return _merge_heads(result), key, value


def _multi_head(call: Call) -> Made:
    heads = call.integer("num_heads", 0)
    query, key, value = call.tensor(0), call.optional(1), call.optional(2)
    if key is None or value is None or key.dim() != 3 or query.dim() != 3:
        raise call.refusal("only query, key and value apart, [batch, length, width] each, are known")
    if any((past := call.optional(index)) is not None and past.shape[2] for index in (6, 7)):
        raise call.refusal("its cache holds tokens, and whole sequences are run")
    if (added := call.optional(3)) is not None:
        width, rest = query.shape[-1], key.shape[-1]
        of_query, of_key, of_value = torch.split(added, [width, rest, value.shape[-1]])
        query, key, value = query + of_query, key + of_key, value + of_value
    bias, padding = call.optional(5), call.optional(4)
    if padding is not None:
        if padding.dim() != 2:
            raise call.refusal(f"a key padding mask of rank {padding.dim()} is not known")
        hidden = torch.where(padding > 0, 0.0, call.number("mask_filter_value", -10000.0))[:, None, None]
        bias = hidden if bias is None else hidden + bias
    parts = (_split_heads(data, heads) for data in (query, key, value))
    scale = call.number("scale", 0.0) or 1 / math.sqrt(query.shape[-1] // heads)
    return _merge_heads(
        _attend(*parts, scale=scale, bias=bias, causal=bool(call.integer("unidirectional", 0)))
    )


def _standard(call: Call) -> Made:
    query, key, value, mask = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    if any(call.optional(index) is not None for index in (4, 5)):
        raise call.refusal("it reads a cache, and whole sequences are run")
    if len([output for output in call.node.outputs if output.uses()]) > 1:
        raise call.refusal("its scores or its cache are read")
    flat = query.dim() == 3
    if flat:
        heads, shared = call.integer("q_num_heads", 0), call.integer("kv_num_heads", 0)
        query = _split_heads(query, heads)
        key, value = _split_heads(key, shared), _split_heads(value, shared)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.where(mask, 0.0, _LOWEST)
    result = _attend(
        query,
        key,
        value,
        scale=call.number("scale", 0.0) or 1 / math.sqrt(query.shape[-1]),
        bias=mask,
        causal=bool(call.integer("is_causal", 0)),
        softcap=call.number("softcap", 0.0),
    )
    return _merge_heads(result) if flat else result


def _rotary_contrib(call: Call) -> Made:
    data, positions, cos, sin = (call.tensor(index) for index in range(4))
    if positions.dim() == 1:
        length = data.shape[1] if data.dim() == 3 else data.shape[2]
        positions = (positions + torch.arange(length))[None]
    size = call.integer("rotary_embedding_dim", 0) and data.shape[-1] // call.integer("num_heads", 1)
    heads = 1 if data.dim() == 4 else data.shape[-1] // (size or 2 * cos.shape[-1])
    return _rotated(call, data, _angles(cos, positions), _angles(sin, positions), heads)


def _rotary_standard(call: Call) -> Made:
    data, cos, sin, positions = call.tensor(0), call.tensor(1), call.tensor(2), call.optional(3)
    if positions is None:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    else:
        cos, sin = _angles(cos, positions), _angles(sin, positions)
    return _rotated(call, data, cos, sin, call.integer("num_heads", 1))


def _rotated(call: Call, data: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> Made:
    interleaved = bool(call.integer("interleaved", 0))
    if data.dim() == 4:
        return _rotate(data, cos, sin, interleaved=interleaved)
    return _merge_heads(_rotate(_split_heads(data, heads), cos, sin, interleaved=interleaved))


ATTENTION: Mapping[tuple[str, str], Rule] = {
    ("", "Attention"): _standard,
    ("", "RotaryEmbedding"): _rotary_standard,
    ("com.microsoft", "GroupQueryAttention"): _group_query,
    ("com.microsoft", "MultiHeadAttention"): _multi_head,
    ("com.microsoft", "RotaryEmbedding"): _rotary_contrib,
}
