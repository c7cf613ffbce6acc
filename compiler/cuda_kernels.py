"""What the CUDA provider has kernels for: operator, opsets, types, and what it wants in the CPU's memory.

The table (``cuda_kernels.tsv``) is the registry of the CUDA provider in onnxruntime-gpu 1.31.1, the wheel on
PyPI for Linux and CUDA 13, listed by that ONNX Runtime itself; ``bench/cuda_registry.py`` writes it anew. A
node without a kernel there runs on the CPU, with copies there and back.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxforge.compiler.cuda_limits import is_left_to_cpu
from onnxforge.compiler.structure_check import operator_name

SOURCE = "kernels of onnxruntime-gpu 1.31.1"
HOST_OUTPUTS = ("SequenceLength", "Shape", "Size")
"""Their kernels run with the GPU's, and put what they know into the CPU's memory."""
_NEWEST = 2**31 - 1


@dataclass(frozen=True)
class CudaKernel:
    """One row of the table."""

    first: int
    last: int
    """Versions of the operator that it implements, both included."""
    host: frozenset[int]
    """Inputs that it wants in the CPU's memory."""
    types: Mapping[str, frozenset[str]]
    """What it takes for some inputs (``i0``) and outputs (``o0``); the others follow."""

    def implements(self, version: int) -> bool:
        """Whether it is for this version: one without an end is for the version it names, and no later one.

        Source: ``KernelRegistry::VerifyKernelDef`` of ONNX Runtime.
        """
        return self.first == version or (self.last != _NEWEST and self.first < version <= self.last)

    def takes(self, node: ir.Node) -> bool:
        """Whether the types fit, as far as they are known."""
        for where, kinds in self.types.items():
            values, index = (node.inputs if where[0] == "i" else node.outputs), int(where[1:])
            value = values[index] if index < len(values) else None
            if value is not None and value.dtype is not None and value.dtype.name.lower() not in kinds:
                return False
        return True


def kernel_for(node: ir.Node, opset: int) -> CudaKernel | None:
    """The kernel that CUDA has for ``node``; ``opset`` is the graph's, of the node's own domain.

    None too where the provider gives such a node away for its attributes.
    """
    rows = _table().get(operator_name(node), ())
    if not rows or is_left_to_cpu(node):
        return None
    version = opset if node.domain not in ("", "ai.onnx") else _since(node.op_type, opset)
    return next((row for row in rows if row.implements(version) and row.takes(node)), None)


@cache
def _since(op_type: str, opset: int) -> int:
    return int(onnx.defs.get_schema(op_type, opset, "").since_version)


@cache
def _table() -> Mapping[str, tuple[CudaKernel, ...]]:
    rows: dict[str, list[CudaKernel]] = defaultdict(list)
    for line in Path(__file__).with_name("cuda_kernels.tsv").read_text().splitlines():
        if line.startswith("#"):
            continue
        operator, versions, host, types = line.split("\t")
        first, _, last = versions.rstrip("+").partition("-")
        pairs = [pair.split("=") for pair in types.split()] if types != "-" else []
        rows[operator].append(
            CudaKernel(
                int(first),
                _NEWEST if versions.endswith("+") else int(last),
                frozenset(map(int, host.split(","))) if host != "-" else frozenset(),
                {where: frozenset(kinds.split(",")) for where, kinds in pairs},
            )
        )
    return {operator: tuple(found) for operator, found in rows.items()}
