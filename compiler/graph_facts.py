"""What the folder's other files need to know of the finished graph, read off the graph itself."""

import re
from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from onnxforge.passes.base import PassRefused

_PAST = re.compile(r"past_key_values\.(\d+)\.key")
_ATTENTION = {"Attention", "MultiHeadAttention", "GroupQueryAttention"}
_ANSWERS = ("logits", "last_hidden_state")
_CACHE_DTYPES = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.INT8: "int8"}


@dataclass(frozen=True)
class GraphFacts:
    """The I/O contract of a compiled graph."""

    inputs: tuple[str, ...]
    """What a caller must feed; an input with a default is not among them."""
    layers: int
    """Layers with a key/value cache; 0 for encoders."""
    kv_heads: int
    head_size: int
    shared_cache: bool
    """Every attention takes past and present in one buffer."""
    cache_dtype: str = "float32"
    """Of past and present, as numpy and transformers.js spell it."""

    @property
    def kind(self) -> str:
        """``decoder`` when the graph carries a cache, else ``encoder``: a key of a target's expectations."""
        return "decoder" if self.layers else "encoder"


def graph_kind(model: ir.Model) -> str:
    """``decoder`` when the graph carries a cache, else ``encoder``; of any graph, compiled or not."""
    return "decoder" if any(_PAST.fullmatch(value.name or "") for value in model.graph.inputs) else "encoder"


def answer_of(model: ir.Model) -> ir.Value:
    """The output by which steps tell how far a model has moved: its logits, else its hidden states.

    Raises:
        PassRefused: the graph answers neither.
    """
    by_name = {output.name: output for output in model.graph.outputs}
    found = next((by_name[name] for name in _ANSWERS if name in by_name), None)
    if found is None:
        answers = ", ".join(name or "(unnamed)" for name in by_name)
        raise PassRefused(
            f"The graph answers {answers}, and neither {' nor '.join(_ANSWERS)}: how far a step moves them "
            "cannot be measured. Export it with one of these outputs."
        )
    return found


def graph_facts(model: ir.Model) -> GraphFacts:
    """Read the contract off the inputs and the attention operators of ``model``."""
    caches = [v for v in model.graph.inputs if _PAST.fullmatch(v.name or "")]
    shape = caches[0].shape if caches else None
    attentions = Counter(n.op_type for n in model.graph.all_nodes() if n.op_type in _ATTENTION)
    return GraphFacts(
        inputs=tuple(v.name or "" for v in model.graph.inputs if v.name not in model.graph.initializers),
        layers=len(caches),
        kv_heads=_static(shape, 1),
        head_size=_static(shape, 3),
        shared_cache=bool(caches) and attentions == Counter(GroupQueryAttention=len(caches)),
        cache_dtype=_cache_dtype(caches),
    )


def _cache_dtype(caches: list[ir.Value]) -> str:
    found = caches[0].dtype if caches else ir.DataType.FLOAT
    return _CACHE_DTYPES[found or ir.DataType.FLOAT]


def _static(shape: ir.Shape | None, axis: int) -> int:
    size = shape[axis] if shape is not None else 0
    if not isinstance(size, int):
        raise ValueError(f"the cache's axis {axis} is {size}, and every runtime needs it as a number")
    return size
