"""What can be proven of a graph without running it: it has the form that its provider's kernels ask for.

A GPU target is often compiled where no GPU is. Its numbers are then measured on the CPU; that the provider
will *find a kernel* for what it is given is checked here, against facts about that provider. Each provider
has its rules in a table; a provider without rules has nothing to check.
"""

from collections.abc import Mapping

import onnx_ir as ir

from onnxforge.compiler import structure_cuda, structure_tensorrt
from onnxforge.compiler.structure_check import Rule, StructureCheck
from onnxforge.compiler.targets import CUDA, TENSORRT

RULES: Mapping[str, tuple[Rule, ...]] = {CUDA: structure_cuda.RULES, TENSORRT: structure_tensorrt.RULES}


def check_structure(model: ir.Model, provider: str) -> tuple[StructureCheck, ...]:
    """Every rule that is known for ``provider``; none for one whose kernels every graph of ours fits."""
    nodes = tuple(model.graph.all_nodes())
    return tuple(rule(nodes) for rule in RULES.get(provider, ()))
