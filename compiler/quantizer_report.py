"""What became of an artifact's quantizers on its provider: one left beside a hot product is an error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from onnxforge.compiler.as_loaded import graph_as_loaded
from onnxforge.compiler.left_quantizers import (
    Fuses,
    LeftQuantizer,
    count_quantizers,
    integer_products,
    left_quantizers,
    never,
    takes_up_int8,
    takes_up_weights_alone,
)
from onnxforge.compiler.targets import CUDA, TENSORRT
from onnxforge.runtimes.artifact import Manifest

HOT = 0.001
"""A product with more than this share of all multiplications by weights is hot ..."""
HOT_TOGETHER = 0.01
"""... and so is each of several that together have more than this."""
_SHOWN = 3


@dataclass(frozen=True)
class QuantizerReport:
    """The quantizers of one artifact."""

    source: str
    """Where this was read, in words."""
    written: int
    """Quantizers in the artifact's graph."""
    left: tuple[LeftQuantizer, ...]
    """Those that the provider runs beside a float operator."""
    kernels: Mapping[str, int] = field(default_factory=dict)
    """Integer products in the graph, by operator."""

    @property
    def hot(self) -> tuple[LeftQuantizer, ...]:
        """Those beside a product that costs: each is an error."""
        shares = {item.beside: item.share for item in self.left if item.share > 0}
        together = sum(shares.values()) > HOT_TOGETHER
        return tuple(item for item in self.left if item.share > HOT or (item.share > 0 and together))

    @property
    def complaint(self) -> str:
        """What is wrong, in one sentence that names the nodes; empty where nothing is."""
        products = {item.beside: item for item in self.hot}
        if not products:
            return ""
        named = [f"`{name}` ({item.share:.1%}): {item.why}" for name, item in products.items()]
        more = f"; {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
        share = sum(item.share for item in products.values())
        size = sum(item.weight_bytes for item in self.hot)
        return (
            "promised that no quantizer is left beside a hot product, found "
            f"{len(products)} with {share:.1%} of the multiplications and {size:,} bytes of weights: "
            f"{'; '.join(named[:_SHOWN])}{more}"
        )


def report_quantizers(
    model: ir.Model, graph: Path, manifest: Manifest, runs_on: str
) -> QuantizerReport | None:
    """Look for quantizers that stay in ``model``, the artifact's graph, which lies at ``graph``.

    Where ``runs_on``, the provider of this machine, is the artifact's, the graph is loaded on it and read as
    ONNX Runtime rewrote it. Elsewhere, and for a provider that compiles it to something else, the graph's
    own form is held against what the provider is known to take up. None for a graph without quantizers.
    """
    written, provider = count_quantizers(model.graph.all_nodes()), manifest.provider
    if not written:
        return None
    if runs_on == provider and provider not in _COMPILES:
        loaded = tuple(graph_as_loaded(graph, provider, manifest.session).graph.all_nodes())
        left = left_quantizers(loaded, provider)
        return QuantizerReport(f"the graph as {provider} loads it", written, left, integer_products(loaded))
    nodes = tuple(model.graph.all_nodes())
    left = left_quantizers(nodes, provider, _TAKES_UP.get(provider, never))
    where = f"the graph's form, and what {provider} is known to take up of it"
    return QuantizerReport(where, written, left, integer_products(nodes))


_COMPILES = (TENSORRT,)
_TAKES_UP: Mapping[str, Fuses] = {CUDA: takes_up_weights_alone, TENSORRT: takes_up_int8}
