"""The grid of each block of weights: where its steps lie. One function per method, all of one shape.

A grid function takes float32 blocks [..., block] and a :class:`BlockScheme`, and returns the step, float32
[...], and the zero point, float32 [...] holding whole numbers from 0 to ``levels - 1``. A code ``q`` then
stands for ``(q - zero) * step``. A symmetric block has its zero point in the middle, and a step of either
sign.

* ``rtn``: the grid spans the block's range, and every weight goes to the nearest value.
* ``mse``: the range is clipped by the factor that leaves the least squared error. The search of OMSE
  (Choukroun et al. 2019, arXiv 1902.06822) and of AWQ's clipping (Lin et al. 2024, arXiv 2306.00978), here
  for each block and on the weights alone.
* ``hqq``: half-quadratic quantization (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog), which
  minimises a p-norm of the error with p < 1, so that a few outliers may be far off.

All are deterministic, need no data, and work on the piece of a matrix that they are given.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import numpy as np

from onnxforge.passes.block_scheme import BlockScheme

Grid: TypeAlias = tuple[np.ndarray, np.ndarray]

_FACTORS: Final = np.linspace(1.08, 0.6, 25, dtype=np.float32)
"""Sizes of the range that ``mse`` tries. Above 1: the rounding of all the others may fit better there."""
_P: Final = 0.7
_BETA: Final = 10.0
_KAPPA: Final = 1.01
_ROUNDS: Final = 20
_TINY: Final = np.float32(1e-6)


def rtn(blocks: np.ndarray, scheme: BlockScheme) -> Grid:
    """Step and zero point that span the range of each block.

    A symmetric grid has one more level below zero than above, so the sign of the step is chosen to give that
    level to the larger side. An asymmetric grid always holds zero exactly.
    """
    if scheme.symmetric:
        low, high = blocks.min(axis=-1), blocks.max(axis=-1)
        extreme = np.where(high >= -low, high, low)
        step = extreme / -scheme.middle
        zero = np.full(step.shape, scheme.middle, dtype=np.float32)
    else:
        low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
        step = (high - low) / (scheme.levels - 1)
        zero = np.rint(-low / np.where(step == 0, 1, step)).astype(np.float32)
    return np.where(step == 0, 1, step).astype(np.float32), zero


def mse(blocks: np.ndarray, scheme: BlockScheme) -> Grid:
    """The grid of :func:`rtn` with its range scaled: for each block, by the factor of least squared error."""
    return weighted_mse(blocks, scheme, None)


def weighted_mse(blocks: np.ndarray, scheme: BlockScheme, weights: np.ndarray | None) -> Grid:
    """:func:`mse` where an error at place i of a block counts ``weights[i]`` times, float32 [block] >= 0."""
    first, zero = rtn(blocks, scheme)
    step, least = first.copy(), _squared(blocks, first, zero, scheme, weights)
    for factor in _FACTORS:
        tried = first * factor
        error = _squared(blocks, tried, zero, scheme, weights)
        better = error < least
        step[better], least[better] = tried[better], error[better]
    return step, zero


def hqq(blocks: np.ndarray, scheme: BlockScheme) -> Grid:
    """Half-quadratic splitting from the grid of :func:`rtn`.

    ::

        E     <- shrink(W - decoded)              the proximal step of the p-norm: small errors become zero
        grid  <- least squares for W - E          first the zero point (asymmetric), then the step

    The paper moves only the zero point, and lets it be a fraction. Ours is a whole number, which those
    updates alone hardly ever move, so the step moves too; a symmetric block has nothing else. Errors are
    measured in steps of the block, which makes one ``beta`` right for weights of every size. A block keeps
    its best grid by the sum of ``|error| ** p``, so the result is never worse than the start.
    """
    step, zero = rtn(blocks, scheme)
    unit, beta = np.abs(step)[..., None], _BETA
    best_step, best_zero, least = step.copy(), zero.copy(), np.full(step.shape, np.inf, dtype=np.float32)
    for _ in range(_ROUNDS):
        codes = _codes(blocks, step, zero, scheme)
        error = (blocks - (codes - zero[..., None]) * step[..., None]) / unit
        size = np.abs(error)
        power = np.maximum(size, _TINY) ** (_P - 1)
        found = np.einsum("...i,...i->...", size, power)
        better = found < least
        best_step[better], best_zero[better], least[better] = step[better], zero[better], found[better]
        target = blocks - np.copysign(np.maximum(size - power / beta, 0), error) * unit
        if not scheme.symmetric:
            zero = np.clip(np.rint((codes - target / step[..., None]).mean(axis=-1)), 0, scheme.levels - 1)
        step = _fitted_step(target, codes - zero[..., None], step)
        beta *= _KAPPA
    return best_step, best_zero


GRIDS: Final[Mapping[str, Callable[[np.ndarray, BlockScheme], Grid]]] = {"rtn": rtn, "mse": mse, "hqq": hqq}
"""Every method by the name that ``quantize-weights{method=...}`` takes."""


def encode(blocks: np.ndarray, scheme: BlockScheme) -> tuple[np.ndarray, Grid]:
    """Codes, uint8 [..., block], of float32 blocks, with the grid that the scheme's method finds for them."""
    step, zero = GRIDS[scheme.method](blocks, scheme)
    return _codes(blocks, step, zero, scheme).astype(np.uint8), (step, zero)


def nearest_codes(values: np.ndarray, step: np.ndarray, zero: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    """float32 codes, whole numbers from 0 to ``levels - 1``, of values that their grids broadcast against."""
    codes: np.ndarray = values / step
    np.rint(codes, out=codes)
    codes += zero
    codes.clip(0, scheme.levels - 1, out=codes)
    return codes


def _codes(blocks: np.ndarray, step: np.ndarray, zero: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    return nearest_codes(blocks, step[..., None], zero[..., None], scheme)


def _error(blocks: np.ndarray, step: np.ndarray, zero: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    decoded = _codes(blocks, step, zero, scheme)
    decoded -= zero[..., None]
    decoded *= step[..., None]
    np.subtract(blocks, decoded, out=decoded)
    return decoded


def _squared(
    blocks: np.ndarray,
    step: np.ndarray,
    zero: np.ndarray,
    scheme: BlockScheme,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    error = _error(blocks, step, zero, scheme)
    squared: np.ndarray
    if weights is None:
        squared = np.einsum("...i,...i->...", error, error)
    else:
        squared = np.square(error) @ weights
    return squared


def _fitted_step(target: np.ndarray, codes: np.ndarray, step: np.ndarray) -> np.ndarray:
    """The step of least squares for ``target = codes * step``; as it was, where every code is zero."""
    weight = np.einsum("...i,...i->...", codes, codes)
    fitted = np.einsum("...i,...i->...", target, codes) / np.where(weight == 0, 1, weight)
    return np.where((weight == 0) | (fitted == 0), step, fitted).astype(np.float32)
