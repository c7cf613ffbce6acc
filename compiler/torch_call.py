"""What a rule gets to see of one node that runs in torch: its tensors, its attributes, its opset."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import onnx_ir as ir
import torch

from onnxforge.passes.base import PassRefused

DTYPES: Mapping[ir.DataType, torch.dtype] = MappingProxyType(
    {
        ir.DataType.FLOAT: torch.float32,
        ir.DataType.DOUBLE: torch.float64,
        ir.DataType.FLOAT16: torch.float16,
        ir.DataType.BFLOAT16: torch.bfloat16,
        ir.DataType.INT64: torch.int64,
        ir.DataType.INT32: torch.int32,
        ir.DataType.INT16: torch.int16,
        ir.DataType.INT8: torch.int8,
        ir.DataType.UINT8: torch.uint8,
        ir.DataType.BOOL: torch.bool,
    }
)


@dataclass(frozen=True)
class Call:
    """One node with the tensors that flow into it."""

    node: ir.Node
    inputs: tuple[torch.Tensor | None, ...]
    opset: int
    """The version of the node's domain that its graph imports."""

    def optional(self, index: int) -> torch.Tensor | None:
        """Input ``index``; None where it is absent or left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def tensor(self, index: int = 0) -> torch.Tensor:
        """Input ``index``.

        Raises:
            PassRefused: the node lacks it.
        """
        found = self.optional(index)
        if found is None:
            raise self.refusal(f"input {index} is missing")
        return found

    def numbers(self, index: int, name: str) -> list[int] | None:
        """Integers that newer opsets give as input ``index`` and older ones as attribute ``name``."""
        found = self.optional(index)
        if found is not None:
            return [int(item) for item in found.reshape(-1).tolist()]
        attribute = self.node.attributes.get(name)
        return list(attribute.as_ints()) if attribute is not None else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return attribute.as_int() if attribute is not None else default

    def number(self, name: str, default: float) -> float:
        """A float attribute."""
        attribute = self.node.attributes.get(name)
        return attribute.as_float() if attribute is not None else default

    def string(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return attribute.as_string() if attribute is not None else default

    def refusal(self, why: str) -> PassRefused:
        """The error that names this node."""
        return refusal(self.node, why)


Made: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]
Rule: TypeAlias = Callable[[Call], Made]
"""Computes a node's outputs. May return fewer than the node has where nothing reads the rest."""


def refusal(node: ir.Node, why: str) -> PassRefused:
    """The error that names ``node``."""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return PassRefused(
        f"The node {node.name!r} ({name}) cannot run in torch: {why}. Leave out the steps that need "
        "gradients (first-order scores, distillation), or the pass that made this node."
    )
