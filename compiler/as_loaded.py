"""The graph that a provider really runs: an artifact's, after ONNX Runtime's own rewriting at load."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from onnxforge.compiler.targets import CPU

_INLINE = 1024
"""Weights up to this many bytes stay in the saved graph; the others go to a file that nobody reads."""


def graph_as_loaded(graph: Path, provider: str, entries: Mapping[str, str]) -> ir.Model:
    """Load ``graph`` on ``provider`` with the session ``entries`` of its manifest, and return what it became.

    The weights' types and shapes are there, their bytes are not. A provider that compiles whole subgraphs
    (TensorRT) cannot write down what it runs.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    weights = {
        "session.optimized_model_external_initializers_file_name": "weights",
        "session.optimized_model_external_initializers_min_size_in_bytes": str(_INLINE),
    }
    for key, value in sorted({**entries, **weights}.items()):
        options.add_session_config_entry(key, value)
    with tempfile.TemporaryDirectory(prefix="onnxforge-loaded-") as folder:
        path = Path(folder) / "graph.onnx"
        options.optimized_model_filepath = str(path)
        providers = list(dict.fromkeys((provider, CPU)))
        ort.InferenceSession(str(graph), options, providers=providers, enable_fallback=False)
        return ir.load(path)
