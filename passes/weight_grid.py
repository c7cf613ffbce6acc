"""Round-to-nearest integer weights with one grid per tensor, column or block of a column."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxforge.passes.constants import add_initializer
from onnxforge.passes.lazy import lazy_tensor
from onnxforge.passes.qdq_scheme import Granularity, WeightScheme


@dataclass(frozen=True)
class Codes:
    """A matrix [K, N] on its grid: ``(codes - zeros) * steps`` is nearest to it."""

    codes: np.ndarray
    """int32 [K, N]."""
    steps: np.ndarray
    """float32: [] for a tensor, [N] for columns, [K / block, N] for blocks."""
    zeros: np.ndarray
    """int32, shaped like ``steps``."""


def quantize(weight: np.ndarray, scheme: WeightScheme) -> Codes:
    """The float matrix ``weight`` [K, N] on the grid that ``scheme`` asks for.

    A symmetric grid is centred and leaves out the lowest code, so that both sides reach equally far, as
    kernels that multiply by int8 expect; an asymmetric one spans the range, zero included, and holds zero
    exactly. A group of zeros gets the step 1.
    """
    kind, groups = scheme.type, _grouped(weight.astype(np.float32, copy=False), scheme)
    low, high = groups.min(axis=1), groups.max(axis=1)
    if scheme.symmetric:
        steps = np.maximum(high, -low) / np.float32(kind.reach)
        least, most = kind.middle - kind.reach, kind.middle + kind.reach
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        steps = (high - low) / np.float32(kind.most - kind.least)
        least, most = kind.least, kind.most
    steps = np.where(steps == 0, np.float32(1), steps).astype(np.float32)
    middle = np.full(steps.shape, kind.middle, dtype=np.float32)
    zeros = middle if scheme.symmetric else np.rint(kind.least - low / steps)
    codes = np.clip(np.rint(groups / steps[:, None]) + zeros[:, None], least, most)
    shape = _steps_shape(weight.shape, scheme)
    return Codes(
        codes.reshape(weight.shape).astype(np.int32),
        steps.reshape(shape),
        zeros.astype(np.int32).reshape(shape),
    )


def quantized(
    graph: ir.Graph,
    name: str,
    read: Callable[[], np.ndarray],
    shape: tuple[int, int],
    scheme: WeightScheme,
    *,
    by_rows: bool = False,
) -> tuple[ir.Value, ...]:
    """Initializers ``codes``, ``steps`` and, where the scheme has them, ``zeros`` of a matrix.

    ``read()`` gives the float matrix of ``shape`` [K, N]; it is asked when they are written. With ``by_rows``
    the matrix is a table [N, K] whose rows are what a column is elsewhere, and all parts are turned likewise.
    """
    parts, dtype = _Parts(read, scheme, by_rows=by_rows), scheme.type.dtype
    small = _steps_shape(shape[::-1] if by_rows else shape, scheme)
    small = small[::-1] if by_rows else small
    codes = lazy_tensor(parts.codes, dtype=dtype, shape=shape)
    steps = lazy_tensor(parts.steps, dtype=ir.DataType.FLOAT, shape=small)
    made = [
        add_initializer(graph, f"{name}.{dtype.name.lower()}", codes),
        add_initializer(graph, f"{name}.steps", steps),
    ]
    if scheme.has_zeros:
        zeros = lazy_tensor(parts.zeros, dtype=dtype, shape=small)
        made.append(add_initializer(graph, f"{name}.zeros", zeros))
    return tuple(made)


def _grouped(weight: np.ndarray, scheme: WeightScheme) -> np.ndarray:
    """[groups, members, columns]: what shares a scale lies along the second axis."""
    if scheme.granularity is Granularity.TENSOR:
        return weight.reshape(1, -1, 1)
    if scheme.granularity is Granularity.CHANNEL:
        return weight[None]
    return weight.reshape(-1, scheme.block_size, weight.shape[1])


def _steps_shape(shape: tuple[int, ...], scheme: WeightScheme) -> tuple[int, ...]:
    if scheme.granularity is Granularity.TENSOR:
        return ()
    return (
        shape[1:] if scheme.granularity is Granularity.CHANNEL else (shape[0] // scheme.block_size, shape[1])
    )


class _Parts:
    """Codes, steps and zeros from one reading of the weight; only the small ones are ever kept."""

    def __init__(self, read: Callable[[], np.ndarray], scheme: WeightScheme, *, by_rows: bool) -> None:
        self._read = read
        self._scheme = scheme
        self._by_rows = by_rows
        self._small: tuple[np.ndarray, np.ndarray] | None = None
        self._lock = threading.Lock()

    def codes(self) -> np.ndarray:
        """The large part."""
        found = self._computed()
        with self._lock:
            self._small = found.steps, found.zeros
        return found.codes.astype(self._scheme.type.dtype.numpy())

    def steps(self) -> np.ndarray:
        """float32."""
        return self._both()[0]

    def zeros(self) -> np.ndarray:
        """In the type of the codes."""
        return self._both()[1].astype(self._scheme.type.dtype.numpy())

    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        with self._lock:
            if self._small is not None:
                return self._small
        found = self._computed()
        return found.steps, found.zeros

    def _computed(self) -> Codes:
        array = self._read()
        if not self._by_rows:
            return quantize(array, self._scheme)
        turned = quantize(np.ascontiguousarray(array.T), self._scheme)
        return Codes(turned.codes.T, turned.steps.T, turned.zeros.T)
