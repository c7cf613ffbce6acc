"""Round-to-nearest quantization of weight matrices in blocks along the contraction axis.

The layout is that of ONNX Runtime's ``MatMulNBits``: a weight [N, K] (one row per output) becomes uint8
[N, K / block, block * bits / 8] with one float scale, and optionally one zero point, per block. At 4 bits two
neighbours share a byte, the first in the low half.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK = 2**21
"""Elements that are quantized at a time: keeps the temporary arrays small beside the weight itself."""


@dataclass(frozen=True)
class BlockScheme:
    """How a block of weights is rounded."""

    bits: int
    block_size: int
    symmetric: bool

    @property
    def levels(self) -> int:
        """Number of representable values."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric block, which MatMulNBits assumes where none is given."""
        return self.levels // 2

    def blob(self) -> int:
        """Bytes of one packed block."""
        return self.block_size * self.bits // 8

    def packed_zeros(self, blocks: int) -> int:
        """Bytes that hold the zero points of one row."""
        return (blocks * self.bits + 7) // 8


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
    """Round float [N, K] to the nearest value of each block's grid."""
    count, width = rows.shape
    blocks = width // scheme.block_size
    packed = np.empty((count, blocks, scheme.blob()), dtype=np.uint8)
    scales = np.empty((count, blocks), dtype=np.float32)
    zeros = np.empty((count, blocks), dtype=np.uint8)
    for part, values in _chunks(rows, scheme):
        scale, zero = _grid(values, scheme)
        codes = np.rint(values / scale[..., None])
        codes += zero[..., None]
        np.clip(codes, 0, scheme.levels - 1, out=codes)
        packed[part] = _pack(codes.astype(np.uint8), scheme.bits)
        scales[part], zeros[part] = scale, zero
    if scheme.symmetric:
        return Blocks(packed, scales, None)
    if scheme.bits == 4 and blocks % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return Blocks(packed, scales, _pack(zeros, scheme.bits))


def dequantize(blocks: Blocks, scheme: BlockScheme) -> np.ndarray:
    """float32 [N, K]: what the packed weight stands for."""
    codes = _unpack(blocks.packed, scheme.bits).astype(np.float32)
    if blocks.zeros is None:
        origin: np.ndarray = np.full(blocks.scales.shape, scheme.middle, dtype=np.float32)
    else:
        origin = _unpack(blocks.zeros, scheme.bits)[:, : blocks.scales.shape[1]].astype(np.float32)
    values: np.ndarray = (codes - origin[..., None]) * blocks.scales[..., None]
    return values.reshape(blocks.packed.shape[0], -1)


def _grid(blocks: np.ndarray, scheme: BlockScheme) -> tuple[np.ndarray, np.ndarray]:
    """Step and zero point of each block [..., block].

    A symmetric grid has one more level below zero than above, so the sign of the step is chosen to give that
    level to the larger side. An asymmetric grid spans the block's range and always holds zero exactly.
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


def _chunks(rows: np.ndarray, scheme: BlockScheme) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = slice(start, start + step)
        yield (
            part,
            rows[part].astype(np.float32).reshape(-1, rows.shape[1] // scheme.block_size, scheme.block_size),
        )


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes if bits == 8 else codes[..., 0::2] | (codes[..., 1::2] << 4)


def _unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
