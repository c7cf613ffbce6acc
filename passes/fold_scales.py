"""Even out the channels that a quantized MatMul reads, by scales that fold into the weights around it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.activation_range import range_of
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.scale_sites import ScaleSite, find_site, fold, multiplied_values, objection

WHAT = "folded scales"
_LEAST = 1e-5


@dataclass(frozen=True)
class FoldScales(GraphPass):
    """Divide each channel of a MatMul's input by a scale, and multiply the matrix's rows by it.

    ::

        norm          MatMul(Norm(x) * gamma, W)      ->  gamma / s,  s * W
        up -> down    MatMul(act(gate) * (h @ U), W)  ->  U / s,      s * W
        v -> o        MatMul(Attention(.., h @ V), W) ->  V / s,      s * W

    Exact in real numbers, and within 1e-5 relative in float32; the forms are those of
    :mod:`onnxforge.passes.scale_sites`. The scale of channel k is max|x_k|^alpha / max|W_k|^(1 - alpha): the
    larger ``alpha``, the more of the activations' spread moves into the weights, whose grid per column takes
    it better. Needs ``calibrate`` before it.

    Source: Xiao et al. 2022, SmoothQuant (2211.10438), equation 4; the other two forms as in AWQ
    (2306.00978).
    """

    summary: ClassVar[str] = "SmoothQuant scales, folded into norms and neighbouring weights"

    alpha: float = 0.65
    norms: bool = True
    """Fold through the norm in front of linear layers."""
    up_down: bool = True
    """Fold through the gated product in front of the down projection."""
    values: bool = False
    """Fold through the attention in front of the output projection: into its values."""

    def requires(self, model: ir.Model) -> None:
        """Refuse an exponent that is none.

        Raises:
            PassRefused: ``alpha`` is outside 0..1.
        """
        if not 0 <= self.alpha <= 1:
            raise PassRefused(f"{self.text()}: alpha is {self.alpha}; it must be between 0 and 1")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold at every site that allows it; the others are noted with the reason."""
        changed = False
        for value in multiplied_values(model.graph):
            found = range_of(value)
            site = find_site(value, norms=self.norms, up_down=self.up_down, values=self.values)
            if found is None or site is None:
                continue
            reason = objection(site)
            if reason is not None:
                notes.near_miss(WHAT, value.name, reason)
                continue
            fold(model.graph, site, _scales(site, site.largest(found.largest), self.alpha))
            notes.match(WHAT, value.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _scales(site: ScaleSite, largest: np.ndarray, alpha: float) -> np.ndarray:
    """float32 [C]; 1 for channels that carry nothing. Reads each matrix once."""
    rows = np.max([np.abs(tensor.numpy()).max(axis=1) for tensor in site.matrices()], axis=0)
    rows = site.largest(rows)
    scales = np.maximum(largest, _LEAST) ** alpha / np.maximum(rows, _LEAST) ** (1 - alpha)
    idle = (largest < _LEAST) | (rows < _LEAST)
    return np.where(idle, 1, np.maximum(scales, _LEAST)).astype(np.float32)
