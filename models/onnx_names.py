"""How tools of this field spell the inputs and outputs of a transformer, and what the one spelling here "
"is."""

import re
from dataclasses import dataclass

_ALIASES = {
    "input_ids": "input_ids",
    "tokens": "input_ids",
    "attention_mask": "attention_mask",
    "input_mask": "attention_mask",
    "position_ids": "position_ids",
    "token_type_ids": "token_type_ids",
    "segment_ids": "token_type_ids",
    "logits": "logits",
    "lm_logits": "logits",
    "last_hidden_state": "last_hidden_state",
    "token_embeddings": "last_hidden_state",
    "hidden_states": "last_hidden_state",
}
_CACHE = re.compile(
    r"(?P<when>past|present|updated)(?:_key_values|_key_value|_kv)?[._/]"
    r"(?:(?P<layer>\d+)[._/](?:self[._/])?(?P<kind>key|value|k|v)s?|(?P<kind2>key|value|k|v)s?[._/](?P<layer2>\d+))"
)


@dataclass(frozen=True)
class CacheName:
    """One half of one layer's key/value cache."""

    layer: int
    kind: str
    """``key`` or ``value``."""
    past: bool
    """An input (past) or an output (present)."""

    def __str__(self) -> str:
        """The canonical name: ``past_key_values.3.key``, ``present.3.key``."""
        return f"{'past_key_values' if self.past else 'present'}.{self.layer}.{self.kind}"


def cache_name(name: str, is_input: bool) -> CacheName | None:
    """Read ``past.3.key``, ``present_key_values.3.value``, ``past_key_3``, ``past_key_values_3_key`` ...

    The side of the graph decides between past and present: some exporters call both ``past_key_values``.
    """
    found = _CACHE.fullmatch(name)
    if found is None or "decoder" in name or "encoder" in name:
        return None
    layer = found["layer"] or found["layer2"]
    kind = (found["kind"] or found["kind2"])[0]
    return CacheName(int(layer), "key" if kind == "k" else "value", is_input)


def canonical(name: str, is_input: bool) -> str | None:
    """The contract's spelling of an input or output, or None when it is not part of the contract."""
    found = cache_name(name, is_input)
    return str(found) if found is not None else _ALIASES.get(name)
