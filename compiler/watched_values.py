"""The values inside a graph, made outputs for one run, in memory only."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.proof_session import GraphSession


def watched_values(
    session: GraphSession, choose: Callable[[ir.Model], Sequence[ir.Value]], ids: np.ndarray
) -> dict[str, np.ndarray]:
    """The values that ``choose`` picks from the graph behind ``session``, for one run on ``ids`` [1, S]."""
    path = session.folder / session.manifest.graph
    model = ir.load(path)
    probes = list(choose(model))
    if not probes:
        return {}
    known = set(model.graph.outputs)
    model.graph.outputs.extend(probe for probe in probes if probe not in known)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    for key, value in session.manifest.session.items():
        options.add_session_config_entry(key, value)
    graph = ir.to_proto(model).SerializeToString()
    watched = ort.InferenceSession(graph, options, providers=[session.provider], enable_fallback=False)
    names = [probe.name or "" for probe in probes]
    values = watched.run(names, session.feeds(ids, np.ones_like(ids)))
    return dict(zip(names, values, strict=True))
