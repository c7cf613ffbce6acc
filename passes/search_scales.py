"""Protect the channels that matter most from blockwise rounding, by scales found on their moments."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
import onnx_ir as ir

from onnxforge.passes import notes
from onnxforge.passes.base import GraphPass, PassRefused
from onnxforge.passes.block_grids import GRIDS
from onnxforge.passes.block_quantization import dequantize, quantize
from onnxforge.passes.block_scheme import BlockScheme
from onnxforge.passes.constants import constant, extents
from onnxforge.passes.input_moments import InputMoments, moments_of
from onnxforge.passes.kept_blocks import KeptBlocks
from onnxforge.passes.option_checks import check_choice
from onnxforge.passes.scale_sites import ScaleSite, find_site, fold, multiplied_values, objection
from onnxforge.passes.stored_blocks import stored_blocks

WHAT = "searched scales"
_RATIOS: Final = tuple(step / 10 for step in range(1, 11))
"""Exponents that are tried, besides 0, which changes nothing."""
_LEAST: Final = 1e-4
"""Smallest scale, of the largest: a channel that carries next to nothing is not blown up without end."""


@dataclass(frozen=True)
class SearchScales(GraphPass):
    """Divide each channel of a MatMul's input by a scale, and multiply the matrix's rows by it.

    ::

        scale of channel k = rms(x_k) ^ r          one r for each place, the one of least error

    A larger weight of its block is rounded more finely in proportion, so the channels that carry most get the
    larger scales. For an r, the error that the output would have is ``tr(E^T H E)``: E is what rounding the
    scaled matrix by ``bits``, ``block_size`` and ``method`` does to it, H the moments that
    ``correlate-inputs`` left. No run of the model is needed. Where the divisions fold, exactly but for 1e-5
    relative in float32, is in :mod:`onnxforge.passes.scale_sites`. Matrices whose stored blocks
    ``quantize-weights`` would keep are left alone.

    Source: Lin et al. 2023, AWQ (2306.00978), section 3.2, with the root mean square in place of the mean
    magnitude, and the exact second moments in place of sampled outputs.
    """

    summary: ClassVar[str] = (
        "AWQ scales, searched for blockwise rounding and folded into neighbouring weights"
    )

    bits: int = 4
    block_size: int = 32
    symmetric: bool = True
    method: str = "rtn"
    """How blocks are rounded in the search: ``rtn``, ``mse`` or ``hqq``."""
    plain_blocks: bool = False
    """As in ``quantize-weights``: only symmetric blocks are kept, so only those are left alone here."""
    norms: bool = True
    """Search at norms in front of linear layers."""
    up_down: bool = True
    """Search at gated products in front of down projections."""
    values: bool = True
    """Search at attentions in front of output projections."""

    def requires(self, model: ir.Model) -> None:
        """Refuse a scheme that is none, and a graph whose inputs were never measured.

        Raises:
            PassRefused: ``bits``, ``block_size`` or ``method`` is not usable, or no value has moments though
                a matrix multiplies some.
        """
        if self.bits not in (4, 8) or self.block_size not in (16, 32, 64, 128, 256):
            raise PassRefused(
                f"{self.text()}: MatMulNBits is used with 4 or 8 bits and blocks of 16, 32, 64, 128 or 256"
            )
        check_choice(self.text(), "method", self.method, GRIDS)
        values = list(multiplied_values(model.graph))
        kept = any(self._stores(value) for value in values)
        if values and not kept and all(moments_of(value) is None for value in values):
            raise PassRefused(
                f"{self.text()}: nothing is known of what matrices multiply; "
                "put `correlate-inputs` before this pass"
            )

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Search and fold wherever it lowers the error; the other places are noted with the reason."""
        changed = False
        for value in multiplied_values(model.graph):
            found = moments_of(value)
            site = find_site(value, norms=self.norms, up_down=self.up_down, values=self.values)
            if found is None or site is None:
                continue
            reason = objection(site) or self._objection(site)
            scales = self._searched(site, found) if reason is None else None
            if scales is None:
                notes.near_miss(WHAT, value.name, reason or "no scales lower the error of rounding")
                continue
            fold(model.graph, site, scales)
            notes.match(WHAT, value.name)
            changed = True
        return ir.passes.PassResult(model, modified=changed)

    def _objection(self, site: ScaleSite) -> str | None:
        keeping = KeptBlocks(self.bits, self.block_size, self.plain_blocks)
        touched = [*((node, 1) for node in site.readers), *site.made_by]
        for node, index in touched:
            tensor = constant(node.inputs[index]) if index < len(node.inputs) else None
            if tensor is not None and keeping.of(tensor, transposed=True) is not None:
                return f"the matrix of {node.name!r} comes in blocks, which scales would break"
        width = extents(site.matrices()[0])[0]
        if width % self.block_size:
            return f"K is {width}, which is no multiple of block_size {self.block_size}"
        return None

    def _stores(self, value: ir.Value) -> bool:
        tensors = (constant(use.node.inputs[1]) for use in value.uses() if len(use.node.inputs) > 1)
        return any(stored_blocks(item, transposed=True) is not None for item in tensors if item is not None)

    def _searched(self, site: ScaleSite, found: InputMoments) -> np.ndarray | None:
        """float32 [C]: the scales of least error, or None where none is better than no scales."""
        moments, powers = found.matrix(), site.mean(found.powers())
        rows = [np.asarray(tensor.numpy(), dtype=np.float32).T for tensor in site.matrices()]
        best, least = None, self._error(rows, np.ones(moments.shape[0], dtype=np.float32), moments)
        for ratio in _RATIOS:
            scales = _normalised(powers, ratio)
            error = self._error(rows, site.spread(scales), moments)
            if error < least:
                best, least = scales, error
        return best

    def _error(self, rows: list[np.ndarray], scales: np.ndarray, moments: np.ndarray) -> float:
        scheme = BlockScheme(self.bits, self.block_size, self.symmetric, self.method)
        total = 0.0
        for matrix in rows:
            scaled = matrix * scales
            wrong = (dequantize(quantize(scaled, scheme), scheme) - scaled) / scales
            total += float(np.einsum("nk,nk->", wrong @ moments, wrong))
        return total


def _normalised(powers: np.ndarray, ratio: float) -> np.ndarray:
    """rms^ratio, float32 [C], with the middle of its range at 1; idle channels get the smallest scale."""
    scales = np.sqrt(powers) ** ratio
    scales = np.maximum(scales, scales.max() * _LEAST) if scales.max() > 0 else np.ones_like(scales)
    normalised: np.ndarray = scales / np.sqrt(scales.max() * scales.min())
    return normalised.astype(np.float32)
