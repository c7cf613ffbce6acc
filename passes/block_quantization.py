"""Weight matrices in blocks of codes along the contraction axis.

The layout is that of ONNX Runtime's ``MatMulNBits``: a weight [N, K] (one row per output) becomes uint8
[N, K / block, block * bits / 8] with one float scale, and optionally one zero point, per block. At 4 bits two
neighbours share a byte, the first in the low half.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxforge.passes.block_grids import encode
from onnxforge.passes.block_scheme import BlockScheme

_CHUNK = 2**17
"""Elements that are quantized at a time. The temporary arrays of a search stay inside a core's cache."""


@dataclass(frozen=True)
class Blocks:
    """A quantized matrix [N, K]."""

    packed: np.ndarray
    """uint8 [N, K / block, blob]."""
    scales: np.ndarray
    """float32 [N, K / block]: the step of each block."""
    zeros: np.ndarray | None
    """uint8 [N, packed]: the code of zero in each block, packed like the weights; None if symmetric."""


def quantize(rows: np.ndarray, scheme: BlockScheme) -> Blocks:
    """Round float [N, K] to the nearest value of each block's grid, which the scheme's method chooses."""
    count, width = rows.shape
    blocks = width // scheme.block_size
    packed = np.empty((count, blocks, scheme.blob()), dtype=np.uint8)
    scales = np.empty((count, blocks), dtype=np.float32)
    zeros = np.empty((count, blocks), dtype=np.uint8)
    for part, values in _chunks(rows, scheme):
        codes, (scales[part], zeros[part]) = encode(values, scheme)
        packed[part] = pack(codes, scheme.bits)
    if scheme.symmetric:
        return Blocks(packed, scales, None)
    return Blocks(packed, scales, pack_zeros(zeros, scheme.bits))


def dequantize(blocks: Blocks, scheme: BlockScheme) -> np.ndarray:
    """float32 [N, K]: what the packed weight stands for."""
    codes = unpack(blocks.packed, scheme.bits).astype(np.float32)
    if blocks.zeros is None:
        origin: np.ndarray = np.full(blocks.scales.shape, scheme.middle, dtype=np.float32)
    else:
        origin = unpack(blocks.zeros, scheme.bits)[:, : blocks.scales.shape[1]].astype(np.float32)
    values: np.ndarray = (codes - origin[..., None]) * blocks.scales[..., None]
    return values.reshape(blocks.packed.shape[0], -1)


def _chunks(rows: np.ndarray, scheme: BlockScheme) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        yield (
            part,
            rows[part].astype(np.float32).reshape(-1, rows.shape[1] // scheme.block_size, scheme.block_size),
        )


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes, uint8 [..., n], as bytes: two to a byte at 4 bits, the first in the low half."""
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def pack_zeros(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points, uint8 [N, K / block], as bytes; an odd one at the end of a row has a byte for itself."""
    if bits == 4 and zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return pack(zeros, bits)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """The codes that :func:`pack` wrote."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
