"""Round-to-nearest quantization of weight matrices in blocks along the contraction axis.

The layout is that of ONNX Runtime's ``MatMulNBits``: a weight [N, K] (one row per output) becomes uint8
[N, K / block, block * bits / 8] with one float scale, and optionally one zero point, per block. At 4 bits two
neighbours share a byte, the first in the low half.
"""

from collections.abc import Callable, Iterator
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


def quantize(rows: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    """uint8 [N, K / block, blob] from float [N, K]."""
    count, width = rows.shape
    packed = np.empty((count, width // scheme.block_size, scheme.blob()), dtype=np.uint8)
    for part, blocks in _chunks(rows, scheme):
        scale, zero = _grid(blocks, scheme)
        codes = np.rint(blocks / scale[..., None]) + zero[..., None]
        packed[part] = _pack(np.clip(codes, 0, scheme.levels - 1).astype(np.uint8), scheme.bits)
    return packed


def scales(rows: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    """float32 [N, K / block]: the step of each block."""
    return _per_block(rows, scheme, lambda blocks: _grid(blocks, scheme)[0])


def zero_points(rows: np.ndarray, scheme: BlockScheme) -> np.ndarray:
    """uint8 [N, packed]: the code of zero in each block, packed like the weights."""
    zeros = _per_block(rows, scheme, lambda blocks: _grid(blocks, scheme)[1]).astype(np.uint8)
    if scheme.bits == 4 and zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)))
    return _pack(zeros, scheme.bits)


def dequantize(
    packed: np.ndarray, scale: np.ndarray, zeros: np.ndarray | None, scheme: BlockScheme
) -> np.ndarray:
    """float32 [N, K]: what the packed weight stands for."""
    codes = _unpack(packed, scheme.bits).astype(np.float32)
    if zeros is None:
        origin: np.ndarray = np.full(scale.shape, scheme.middle, dtype=np.float32)
    else:
        origin = _unpack(zeros, scheme.bits)[:, : scale.shape[1]].astype(np.float32)
    values: np.ndarray = (codes - origin[..., None]) * scale[..., None]
    return values.reshape(packed.shape[0], -1)


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


def _per_block(
    rows: np.ndarray, scheme: BlockScheme, compute: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    result = np.empty((rows.shape[0], rows.shape[1] // scheme.block_size), dtype=np.float32)
    for part, blocks in _chunks(rows, scheme):
        result[part] = compute(blocks)
    return result


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
