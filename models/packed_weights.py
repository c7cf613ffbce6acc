"""A checkpoint of packed matrices as one of float weights: ``x.qweight`` and its like become ``x.weight``.

Everything that does not fit is found before anything is read but the small tensors (``g_idx``,
``weight_shape``), and told at once.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxforge.models.errors import SourceError
from onnxforge.models.packed_format import Grid, Layout, PackedFormat
from onnxforge.models.packed_matrix import PackedMatrix
from onnxforge.models.stored_blocks import STORED_BLOCKS, STORED_BLOCKS_TURNED

_GPTQ: Final = {"qweight": "codes", "scales": "scales", "qzeros": "zeros", "g_idx": "groups"}
_ROLES: Final[Mapping[Layout, Mapping[str, str]]] = MappingProxyType(
    {
        Layout.GPTQ: _GPTQ,
        Layout.GPTQ_V2: _GPTQ,
        Layout.AWQ: {"qweight": "codes", "scales": "scales", "qzeros": "zeros"},
        Layout.PACKED: {
            "weight_packed": "codes",
            "weight_scale": "scales",
            "weight_zero_point": "zeros",
            "weight_shape": "shape",
            "weight_g_idx": "groups",
        },
    }
)
"""For each layout, the part that a tensor plays, by the last component of its name."""
CODES: Final = ("qweight", "weight_packed")
"""Last component of the name of a packed matrix."""
_WHOLE: Final = (ir.DataType.INT32, ir.DataType.INT64)
_FLOATS: Final = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)
_DTYPES: Final[Mapping[str, tuple[ir.DataType, ...]]] = MappingProxyType(
    {"codes": _WHOLE[:1], "zeros": _WHOLE[:1], "scales": _FLOATS, "groups": _WHOLE, "shape": _WHOLE}
)
_SHOWN: Final = 8

Parts = Mapping[str, ir.TensorProtocol]


def unpacked(
    weights: Mapping[str, ir.TensorProtocol], packed: PackedFormat, where: str, *, turned: bool
) -> dict[str, ir.TensorProtocol]:
    """``weights`` with a lazy float32 ``.weight`` in place of the tensors of each packed matrix.

    ``turned`` says that the model's own linear layers have weights [K, N] (GPT-2's ``Conv1D``).

    Raises:
        SourceError: tensors of packed matrices are missing, have an unexpected dtype or shape, or disagree
            with each other or with the format; all of them are named (the first few in full).
    """
    roles = _ROLES[packed.layout]
    kept: dict[str, ir.TensorProtocol] = {}
    modules: dict[str, dict[str, ir.TensorProtocol]] = {}
    for name, tensor in weights.items():
        module, _, last = name.rpartition(".")
        if last in roles:
            modules.setdefault(module, {})[roles[last]] = tensor
        else:
            kept[name] = tensor
    problems = [] if modules else [f"no tensor is named {' or '.join(roles)}: nothing in it is packed"]
    for module, parts in modules.items():
        matrix = _matrix(module, parts, packed, problems)
        name = f"{module}.weight"
        if name in kept:
            problems.append(f"{module} has both {name} and packed tensors")
        if matrix is not None:
            flip = turned and module != "lm_head"
            kept[name] = _lazy(name, matrix, turned=flip)
    if problems:
        more, grids = len(problems) - _SHOWN, " or ".join(map(str, packed.grids))
        shown = problems[:_SHOWN] + ([f"and {more} more of that kind"] if more > 0 else [])
        raise SourceError.listing(
            f"{where} says {packed.layout}, {grids}, and the weights do not fit",
            shown,
            "Check that the configuration belongs to these weight files, or fetch both again.",
        )
    return kept


def _matrix(module: str, parts: Parts, packed: PackedFormat, problems: list[str]) -> PackedMatrix | None:
    """The matrix of one module, or None and its problems."""
    names = {role: name for name, role in _ROLES[packed.layout].items()}
    wrong = [
        f"{names[role]} is {tensor.dtype.name}"
        for role, tensor in parts.items()
        if tensor.dtype not in _DTYPES[role]
    ]
    needed = ("codes", "scales", "shape" if packed.layout is Layout.PACKED else "zeros")
    absent = [f"there is no {names[role]}" for role in needed if role not in parts]
    if wrong or absent:
        problems.append(f"{module}: {', '.join(absent + wrong)}")
        return None
    for grid in packed.grids:
        size = _size(parts, packed.layout, grid)
        if size is not None and _shapes(parts) == _expected(parts, packed.layout, grid, size):
            groups = _groups(module, parts, grid, size[1], problems)
            if groups is None:
                return None
            zeros = parts.get("zeros")
            return PackedMatrix(
                packed.layout, grid.bits, size, parts["codes"], parts["scales"], zeros, groups
            )
    told = ", ".join(f"{names[role]} {list(shape)}" for role, shape in _shapes(parts).items())
    problems.append(f"{module}: {told} fit no such grid")
    return None


def _size(parts: Parts, layout: Layout, grid: Grid) -> tuple[int, int] | None:
    """(N, K) as the tensors tell it, if they can be read so."""
    codes = _shape(parts["codes"])
    if len(codes) != 2:
        return None
    if layout is Layout.PACKED:
        told = parts["shape"].numpy().reshape(-1).tolist() if _shape(parts["shape"]) == (2,) else [0, 0]
        count, width = int(told[0]), int(told[1])
    elif layout is Layout.AWQ:
        count, width = codes[1] * 8, codes[0]
    else:
        groups = _shape(parts["groups"]) if "groups" in parts else ()
        count, width = codes[1], groups[0] if len(groups) == 1 else codes[0] * 32 // grid.bits
    return (count, width) if count > 0 and width > 0 else None


def _expected(parts: Parts, layout: Layout, grid: Grid, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    """The shape of each part of a matrix (N, K) on ``grid``."""
    count, width = size
    groups = 1 if grid.group == -1 else _over(width, grid.group)
    words = _over(width * grid.bits, 32), _over(count * grid.bits, 32)
    if layout is Layout.PACKED:
        shapes = {"codes": (count, words[0]), "scales": (count, groups), "zeros": (words[1], groups)}
    else:
        rows = width if layout is Layout.AWQ else words[0]
        columns = words[1] if layout is Layout.AWQ else count
        shapes = {"codes": (rows, columns), "scales": (groups, count), "zeros": (groups, words[1])}
    if not grid.zeros:
        del shapes["zeros"]
    vectors = {"groups": (width,), "shape": (2,)}
    return {**shapes, **{role: vectors[role] for role in vectors if role in parts}}


def _groups(
    module: str, parts: Parts, grid: Grid, width: int, problems: list[str]
) -> NDArray[np.int64] | None:
    """[K]: the group of each column, or None and a problem."""
    plain = np.arange(width) // (width if grid.group == -1 else min(grid.group, width))
    if "groups" not in parts:
        return plain
    told = np.array(parts["groups"].numpy(), dtype=np.int64)
    if told.min() < 0 or told.max() > plain[-1]:
        problems.append(
            f"{module}: g_idx names groups {told.min()} to {told.max()}, and there are 0 to {plain[-1]}"
        )
        return None
    return told


def _lazy(name: str, matrix: PackedMatrix, *, turned: bool) -> ir.LazyTensor:
    """The float32 tensor of ``matrix``, [N, K], or [K, N] if ``turned``, with the matrix in its notes."""

    def evaluate() -> ir.TensorProtocol:
        values = matrix.values()
        return ir.Tensor(np.ascontiguousarray(values.T) if turned else values, name=name)

    shape = matrix.shape[::-1] if turned else matrix.shape
    lazy = ir.LazyTensor(evaluate, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
    if matrix.fits_blocks:
        lazy.meta[STORED_BLOCKS_TURNED if turned else STORED_BLOCKS] = matrix
    return lazy


def _shapes(parts: Parts) -> dict[str, tuple[int, ...]]:
    return {role: _shape(tensor) for role, tensor in parts.items()}


def _shape(tensor: ir.TensorProtocol) -> tuple[int, ...]:
    return tuple(int(dim) for dim in tensor.shape.numpy())


def _over(number: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-number // divisor)
