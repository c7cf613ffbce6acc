"""Symbolic sizes of an existing graph, renamed to the contract's everywhere in the graph."""

from collections.abc import Sequence

import onnx_ir as ir


class SymbolNames:
    """Which symbol of the file became which of the contract; collected while inputs and outputs are named."""

    def __init__(self) -> None:
        self._renamed: dict[str, set[str]] = {}

    def set_shape(self, value: ir.Value, dims: Sequence[int | str]) -> None:
        """Give an input or output its shape, and remember what its symbols were called before."""
        before = list(value.shape) if value.shape is not None and len(value.shape) == len(dims) else []
        for old, new in zip(before, dims, strict=False):
            symbol = _symbol(old)
            if symbol is not None and isinstance(new, str):
                self._renamed.setdefault(symbol, set()).add(new)
        value.shape = ir.Shape(dims)

    def apply(self, graph: ir.Graph) -> None:
        """Rename the symbols of all values between; a symbol that stood for two sizes is forgotten."""
        outer = {*graph.inputs, *graph.outputs}
        for node in graph.all_nodes():
            for value in node.outputs:
                if value.shape is not None and value not in outer:
                    value.shape = ir.Shape([self._new(dim) for dim in value.shape])

    def _new(self, dim: int | ir.SymbolicDim) -> int | str | None:
        symbol = _symbol(dim)
        if symbol is None:
            return dim if isinstance(dim, int) else None
        names = self._renamed.get(symbol, set())
        return next(iter(names)) if len(names) == 1 else None


def _symbol(dim: int | ir.SymbolicDim) -> str | None:
    return dim.value if isinstance(dim, ir.SymbolicDim) and isinstance(dim.value, str) else None
