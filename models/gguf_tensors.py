"""GGUF tensors as Hugging Face parameters: renamed, dequantised to float32 when asked for, never earlier."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.gguf_architectures import Architecture, Layout
from onnxforge.models.gguf_codes import coded
from onnxforge.models.gguf_file import GgufFile, GgufTensor
from onnxforge.models.stored_blocks import STORED_BLOCKS, STORED_BLOCKS_TURNED

READABLE: Final = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""ggml types that are dequantised."""
_UNBLOCKED: Final = ("F32", "F16", "BF16")
"""Those of them whose elements stand alone, so that single ones can move."""
BLOCKS_META: Final = "gguf_blocks"
"""Key of ``tensor.meta`` that holds the :class:`GgufBlocks` behind a weight."""


@dataclass(frozen=True)
class GgufBlocks:
    """The stored blocks of one weight, in the row order of the Hugging Face parameter.

    For whoever can use the quantised form as it is; :meth:`rows` copies nothing unless rows move.
    """

    path: Path
    tensor: GgufTensor
    heads: int | None = None
    """Number of heads whose rows are interleaved in the file, or None when the order is already right."""

    @property
    def type_name(self) -> str:
        """Name of the ggml type: ``Q4_1``."""
        from gguf.constants import GGMLQuantizationType

        return str(GGMLQuantizationType(self.tensor.ggml_type).name)

    @property
    def is_turned_vector(self) -> bool:
        """Whether this is the bias of a projection with interleaved rows: its elements move, one by one."""
        return self.heads is not None and len(self.tensor.shape) == 1

    def rows(self) -> NDArray[np.uint8]:
        """uint8 ``[rows, bytes per row]``, mapped from the file. Where a bias moves, each element is a row.

        Raises:
            SourceError: the file has become shorter since its header was read.
        """
        counted = self.tensor.shape if self.is_turned_vector else self.tensor.shape[:-1]
        count = int(np.prod(counted, dtype=np.int64))
        try:
            stored = np.memmap(self.path, np.uint8, "r", self.tensor.offset, (self.tensor.size,))
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{self.path}: tensor {self.tensor.name!r} cannot be read any more: {error}. "
                "The file changed while it was in use; start again."
            ) from error
        view = stored.reshape(count, -1)
        return view if self.heads is None else view[rotary_rows(count, self.heads)]

    def values(self) -> NDArray[np.float32]:
        """float32 in the row-major shape of the file's tensor."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        kind = GGMLQuantizationType(self.tensor.ggml_type)
        rows = self.rows()
        if kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            flat = rows.view("<f4" if kind is GGMLQuantizationType.F32 else "<f2").astype(np.float32)
        else:
            # gguf works through 16 rows at a time, whatever their length: long rows make fewer, larger steps.
            flat = dequantize(np.asarray(rows).reshape(len(rows) // _merge(len(rows)), -1), kind)
        return np.asarray(flat, dtype=np.float32).reshape(self.tensor.shape)


def _merge(rows: int) -> int:
    """How many neighbouring rows to read as one: the largest power of two up to 16 that divides ``rows``."""
    return next(count for count in (16, 8, 4, 2, 1) if rows % count == 0)


def rotary_rows(rows: int, heads: int) -> NDArray[np.int64]:
    """For each row of a Hugging Face q or k projection, the row of the file that holds it.

    Within a head of ``d`` rows the file stores pair ``j`` at ``2j`` and ``2j+1``; Hugging Face keeps the
    first members at ``0..d/2`` and the second ones after them.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def bind_weights(
    file: GgufFile, architecture: Architecture, heads: int, kv_heads: int
) -> dict[str, ir.LazyTensor]:
    """Lazy float32 tensors by Hugging Face parameter name, for every tensor of the file.

    Raises:
        UnsupportedModel: tensors without a place in this architecture, or of a type that cannot be read;
            all are named at once.
    """
    weights: dict[str, ir.LazyTensor] = {}
    problems: list[str] = []
    for tensor in file.tensors.values():
        base = _base(tensor.name)
        if base in architecture.unlisted:
            continue
        name = _parameter(tensor.name, architecture)
        layout = architecture.layouts.get(base, Layout.PLAIN)
        count = kv_heads if base == "attn_k" else heads
        blocks = GgufBlocks(file.path, tensor, count if layout is Layout.ROTARY else None)
        if name is None:
            problems.append(f"tensor {tensor.name!r} has no known place in it")
        elif blocks.type_name not in READABLE:
            problems.append(f"tensor {tensor.name!r} is stored as {blocks.type_name}")
        elif layout is Layout.ROTARY and tensor.shape[0] % (2 * count):
            problems.append(f"tensor {tensor.name!r} has {tensor.shape[0]} rows for {count} heads")
        elif blocks.is_turned_vector and blocks.type_name not in _UNBLOCKED:
            problems.append(f"tensor {tensor.name!r} is a bias in blocks of {blocks.type_name}")
        else:
            weights[name] = _lazy(name, blocks, layout)
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise UnsupportedModel(
            f"{file.path} ({architecture.model_type}): {shown}. Types that can be read: "
            f"{', '.join(READABLE)}. "
            "Use a file of another quantization, or the Hugging Face folder of this model."
        )
    return weights


def _lazy(name: str, blocks: GgufBlocks, layout: Layout) -> ir.LazyTensor:
    flip = layout is Layout.TRANSPOSED and len(blocks.tensor.shape) == 2
    shape = tuple(reversed(blocks.tensor.shape)) if flip else blocks.tensor.shape

    def evaluate() -> ir.TensorProtocol:
        values = blocks.values()
        if flip:
            values = np.ascontiguousarray(values.T)
        if layout is Layout.ONE_ADDED:
            values = values - np.float32(1)
        return ir.Tensor(values, name=name)

    lazy = ir.LazyTensor(evaluate, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
    if layout in (Layout.PLAIN, Layout.ROTARY):
        lazy.meta[BLOCKS_META] = blocks
    codes = coded(blocks.type_name, blocks.rows) if len(shape) == 2 else None
    if codes is not None and layout is not Layout.ONE_ADDED:
        lazy.meta[STORED_BLOCKS_TURNED if flip else STORED_BLOCKS] = codes
    return lazy


def _base(name: str) -> str:
    """``blk.3.attn_q.weight`` and ``attn_q.bias`` are both ``attn_q``."""
    stem = name.rpartition(".")[0]
    return stem.split(".", 2)[2] if stem.startswith("blk.") and stem.count(".") >= 2 else stem


def _parameter(name: str, architecture: Architecture) -> str | None:
    stem, _, kind = name.rpartition(".")
    if kind not in ("weight", "bias"):
        return None
    if not stem.startswith("blk."):
        outer: Mapping[str, str] = architecture.outer
        return f"{outer[stem]}.{kind}" if stem in outer else None
    index, _, inner = stem.removeprefix("blk.").partition(".")
    if not index.isdecimal() or inner not in architecture.block:
        return None
    return f"{architecture.prefix}.{index}.{architecture.block[inner]}.{kind}"
