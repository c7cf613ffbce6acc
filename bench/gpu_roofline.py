"""What the machine allows at best: bytes over measured bandwidth, operations over measured throughput."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """What was measured of this device, by a copy, a product of one row and a large product."""

    bandwidth: float
    """Bytes per second."""
    rate: float
    """Floating-point operations per second, two per multiply-add, in the type that targets compute in."""


@dataclass(frozen=True)
class Product:
    """One matrix product [M, K] x [K, N] with a stored weight."""

    rows: int
    inner: int
    columns: int
    weight_bytes: int
    element: int
    """Bytes of an element of what goes in and what comes out."""

    def floor(self, ceilings: Ceilings) -> float:
        """Seconds below which no kernel gets: weight, input and output moved once, or every multiply-add."""
        moved = self.weight_bytes + self.element * self.rows * (self.inner + self.columns)
        operations = 2 * self.rows * self.inner * self.columns
        return max(moved / ceilings.bandwidth, operations / ceilings.rate)


@dataclass(frozen=True)
class Decoder:
    """What one token costs a decoder."""

    weight_bytes: int
    """Read for every step, however many rows it has."""
    cache_bytes: int
    """Keys and values of one position of one row."""
    macs: int
    """Multiply-adds with weights for a token of a prompt; the head counts for the last one only."""

    def decode_floor(self, ceilings: Ceilings, rows: int, depth: float) -> float:
        """Seconds of a step of ``rows`` rows with ``depth`` positions behind each."""
        moved = self.weight_bytes + rows * depth * self.cache_bytes
        return max(moved / ceilings.bandwidth, 2 * rows * self.macs / ceilings.rate)

    def prefill_floor(self, ceilings: Ceilings, tokens: int) -> float:
        """Seconds to read ``tokens`` tokens; the products within attention are not counted."""
        return max(self.weight_bytes / ceilings.bandwidth, 2 * tokens * self.macs / ceilings.rate)


def percent(floor: float, measured: float) -> float:
    """How much of the bound was reached, in percent; 0 where nothing was measured."""
    return 100.0 * floor / measured if measured > 0 else 0.0
