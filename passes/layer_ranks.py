"""In which order layers can go, left for ``prune-layers`` on the values they end in; never saved."""

from collections.abc import Sequence

from onnxforge.passes.layers import LayerUnit, Span

LAYER_RANK = "layers to remove"
"""What measures of a layer's worth speak of."""
_KEY = "onnxforge.layer_rank"


def leave_ranks(spans: Sequence[Span], unit: LayerUnit, order: Sequence[int]) -> None:
    """Let ``spans[order[0]]`` be the first to go, and those that ``order`` does not name stay."""
    ranks = {number: rank for rank, number in enumerate(order)}
    for number, span in enumerate(spans):
        span.end.meta.pop(f"{_KEY}.{unit}", None)
        if number in ranks:
            span.end.meta[f"{_KEY}.{unit}"] = ranks[number]


def ranked(spans: Sequence[Span], unit: LayerUnit) -> tuple[int, ...]:
    """The numbers of the spans that were ranked, first to go first."""
    key = f"{_KEY}.{unit}"
    found = {number: span.end.meta[key] for number, span in enumerate(spans) if key in span.end.meta}
    return tuple(sorted(found, key=lambda number: found[number]))
