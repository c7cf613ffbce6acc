"""Where ONNX Runtime really put each node of an artifact, asked on a machine that has the provider.

What :mod:`onnxforge.compiler.placement` predicts, seen. The session records which provider took each node
when it is built (``session.record_ep_graph_assignment_info``); a provider that compiles whole subgraphs
(TensorRT) took the nodes inside them.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.placement_report import is_hot, load_typed
from onnxforge.compiler.structure_check import StructureCheck, listed
from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.session import open_session, options_for

_RECORD = "session.record_ep_graph_assignment_info"


def check_seen_placement(folder: Path, manifest: Manifest) -> StructureCheck:
    """Load the artifact's graph on its own provider; broken where a hot node of it went to another one.

    Raises:
        RequestError, ArtifactError: the provider is not here, or the graph does not load.
    """
    path = folder / manifest.graph
    entries = {**manifest.session, _RECORD: "1"}
    session = open_session(path, manifest.provider, entries, None, options_for(manifest.provider, manifest))
    return judge_assignment(load_typed(path), assignment(session), manifest.provider)


def assignment(session: ort.InferenceSession) -> Mapping[str, tuple[str, str]]:
    """Operator and provider of each node of a session that recorded them, by the node's name."""
    return {
        node.name: (node.op_type, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    }


def judge_assignment(
    model: ir.Model, assigned: Mapping[str, tuple[str, str]], provider: str
) -> StructureCheck:
    """Whether every hot node of ``model`` that ONNX Runtime kept was ``assigned`` to ``provider``."""
    hot = {node.name for node in model.graph.all_nodes() if is_hot(node)}
    off = Counter(
        f"{operator} {name} on {where}"
        for name, (operator, where) in assigned.items()
        if where != provider and name in hot
    )
    there = sum(where == provider for _, where in assigned.values())
    return StructureCheck(
        rule=f"{provider} was given what works on activations, weights or the cache",
        found=listed(off) or f"{there} of {len(assigned)} nodes, as loaded on this machine",
        held=not off and there > 0,
        required=True,
    )
