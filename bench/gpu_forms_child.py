"""Run by `gpu.py`: times the forms of one product on one device.

    python bench/gpu_forms_child.py DEVICE K N COPIES

Requests: ``{"do": "open", "form": KEY, "facts": true}`` gives what ONNX Runtime made of it; ``{"do": "time",
"form": KEY, "rows": M, "most": RUNS, "budget": SECONDS}`` gives milliseconds a product, launched one by one
("run") and replayed as a CUDA graph ("graph"), and the error of either against float32.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from gpu_forms import FORMS, Form, drawn, form_model
from gpu_process import one_line, serve
from gpu_sessions import Bound, medians, open_graph

_CHECKED = 16
"""Rows of the first product that are held against float32."""
_ASKED_PLACES = {"session.record_ep_graph_assignment_info": "1"}


class Forms:
    """Sessions by form, all over the same weight."""

    def __init__(self, device: str, inner: int, columns: int, copies: int) -> None:
        self._device, self._copies = device, copies
        self._weight = drawn(inner, columns)
        self._float_type = np.float16 if device == "cuda" else np.float32
        self._sessions: dict[str, tuple[ort.InferenceSession, bool]] = {}
        self._bound: dict[str, Bound] = {}
        self._errors: dict[tuple[str, str], float] = {}
        self._rows = 0

    def answer(self, request: dict) -> dict:
        form = next(form for form in FORMS if form.key == request["form"])
        if request["do"] == "open":
            return self._open(form, request["facts"])
        return self._time(form, request["rows"], request["most"], request["budget"])

    def _open(self, form: Form, asked: bool) -> dict:
        """The session that is timed; and if ``asked``, facts from one of a single product."""
        single = form_model(form, self._weight, 1, self._float_type) if asked else None
        facts = rewritten(single, self._device, form) if single else {}
        model = form_model(form, self._weight, self._copies, self._float_type)
        captures = self._device == "cuda"
        try:
            graphs = {"enable_cuda_graph": "1"} if captures else {}
            session = open_graph(model, self._device, form.session, graphs)
        except Exception:
            if not captures:
                raise
            captures = False  # a node is not CUDA's
            session = open_graph(model, self._device, form.session)
        self._sessions[form.key] = session, captures
        return {**facts, "captures": captures}

    def _time(self, form: Form, rows: int, most: int, budget: float) -> dict:
        if rows != self._rows:
            self._bound.clear()
            self._errors.clear()
            self._rows = rows
        session, captures = self._sessions[form.key]
        found = self._timed(form, session, -1, most, budget)
        if captures:
            try:
                found |= self._timed(form, session, rows, most, budget)
            except Exception as error:
                self._sessions[form.key] = session, False
                found["no_graph"] = one_line(str(error))
        return found

    def _timed(
        self, form: Form, session: ort.InferenceSession, graph: int, most: int, budget: float
    ) -> dict[str, float]:
        """Milliseconds a product and, at the first time, whether what is computed is right."""
        if form.key not in self._bound:
            inner, columns = self._weight.values.shape
            rng = np.random.default_rng(self._rows)
            x = rng.standard_normal((self._rows, inner), dtype=np.float32).astype(self._float_type)
            outputs = {f"y_{copy}": (self._rows, columns) for copy in range(self._copies)}
            self._bound[form.key] = Bound(session, self._device, {"x": x}, outputs)
        bound, name = self._bound[form.key], "run" if graph < 0 else "graph"
        unchecked = (form.key, name) not in self._errors
        if unchecked:
            bound.poison("y_0")  # or a run that writes nothing would show what another one wrote
        samples = bound.seconds(most, budget, graph)
        if unchecked:
            self._errors[form.key, name] = self._error(bound)
        found = medians([seconds / self._copies for seconds in samples])
        return {f"{name}_{k}": v for k, v in found.items()} | {f"{name}_error": self._errors[form.key, name]}

    def _error(self, bound: Bound) -> float:
        """Root mean square of the difference to float32, over that of the float32 product."""
        found = bound.results["y_0"].numpy()[:_CHECKED].astype(np.float32)
        wanted = bound.inputs["x"][:_CHECKED].astype(np.float32) @ self._weight.values
        return float(np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)))


def rewritten(model: onnx.ModelProto, device: str, form: Form) -> dict[str, object]:
    """Operators after ONNX Runtime's optimizations, and who was given the nodes."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimized.onnx")
        session = open_graph(model, device, {**form.session, **_ASKED_PLACES}, optimized=path)
        nodes = onnx.load(path, load_external_data=False).graph.node
    parts = session.get_provider_graph_assignment_info()
    places = Counter(f"{node.op_type} on {part.ep_name}" for part in parts for node in part.get_nodes())
    return {"operators": [node.op_type for node in nodes], "places": dict(places)}


if __name__ == "__main__":
    device, *numbers = sys.argv[1:]
    serve(Forms(device, *map(int, numbers)).answer)
