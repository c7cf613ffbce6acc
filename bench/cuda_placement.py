"""Placement lists of CUDA artifacts: predicted, and held against what ONNX Runtime does.

    python bench/cuda_placement.py --gpu-python /tmp/gpu/bin/python build/smollm2-cuda-int8 ...
    python bench/cuda_placement.py --gpu-python /tmp/gpu/bin/python --families    # the tests' tiny ones

No GPU: the real onnxruntime-gpu loads each graph over libraries that compute nothing (see cuda_stub.py). What
it decides is seen, and that every kernel of a plain graph takes what it is given; what lies where between
steps of a Loop is not shown by it. An encoder is given cuDNN, which its attention asks for, a decoder is not.
An artifact for another provider can be given too, and shows what would leave CUDA.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cuda_stub
from record import record
from tiny_artifacts import tiny_artifacts

from onnxforge.compiler.cuda_limits import Outcome
from onnxforge.compiler.loop_check import has_loop
from onnxforge.compiler.placement import PlacedGraph, place
from onnxforge.compiler.placement_report import PlacementPart, load_typed, placement_parts
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes.artifact import Manifest, read_manifest

CUDA = "CUDAExecutionProvider"
TARGETS = ("cuda-fp16", "cuda-int8", "cuda-int4")
HEADER = (
    "graph", "on CUDA", "on the CPU", "without kernel", "hot off CUDA", "beyond a limit", "need cuDNN",
    "copies", "each moves to the GPU", "and back", "predicted otherwise", "kernels refuse",
)  # fmt: skip
Crossing = set[tuple[str, str]]


@dataclass(frozen=True)
class Asked:
    """Where answers come from."""

    python: Path
    stubs: Path

    def child(self, script: str, path: Path, manifest: Manifest, cudnn: bool = False) -> Mapping[str, object]:
        """The JSON in the last line of what a script prints about one graph."""
        entries = [f"{key}={value}" for key, value in manifest.session.items()]
        script_file = Path(__file__).with_name(script)
        said = cuda_stub.run(self.python, script_file, self.stubs, str(path), *entries, cudnn=cudnn)
        return json.loads(said.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-python", type=Path, required=True)
    parser.add_argument("--families", nargs="*", help="all of them by default")
    parser.add_argument("artifacts", type=Path, nargs="*")
    asked = parser.parse_args()
    rows, lists, wrong, version = [], {}, [], ""
    with tempfile.TemporaryDirectory(prefix="cuda-stub-") as temp:
        here = Asked(asked.gpu_python, Path(temp, "stubs"))
        here.stubs.mkdir()
        cuda_stub.build(cuda_stub.provider_of(asked.gpu_python), here.stubs)
        tiny = tiny_artifacts(asked.families or (), TARGETS, Path(temp))
        for artifact in asked.artifacts if asked.families is None else tiny:
            manifest = read_manifest(artifact)
            for file in (manifest.graph, *([AddSpeculativeLoop.file] if has_loop(artifact) else [])):
                name = f"{artifact.name} {Path(file).name}"
                seen = here.child("cuda_placement_child.py", artifact / file, manifest)
                version = seen["version"]
                model = load_typed(artifact / file)
                parts = tuple(placement_parts(model, file))
                others = [line for part in place(model) for line in differences(part, seen)]
                refused = refusals(here, artifact, file, manifest)
                lists[name] = [asdict(part) for part in parts]
                rows.append((name, *row(parts, others, refused)))
                print(*rows[-1], flush=True)
                promised = manifest.provider == CUDA  # others are here to show what would leave it
                hot = [f"{node} off CUDA" for part in parts for node in part.hot if promised]
                wrong += [f"{name}: {line}" for line in (*others, *refused, *hot)]
    record(
        "cuda_placement" if asked.families is None else "cuda_placement_families",
        "Placement on CUDA: predicted, and by ONNX Runtime itself over stub libraries, without a GPU",
        {"onnxruntime-gpu": version, "rows": rows, "wrong": wrong, "lists": lists},
        HEADER,
        rows,
        [
            "Nodes of a graph and of all nested in it. Bytes are for a token (of an encoder: a text; of a "
            "loop: a step) at 1,024 tokens of context. The lists themselves are in the JSON beside this.",
            *([f"Wrong: {line}." for line in wrong] or ["Every node and every copy as predicted."]),
        ],
    )
    return 1 if wrong else 0


def refusals(here: Asked, artifact: Path, file: str, manifest: Manifest) -> list[str]:
    """What kernels of the plain graph do not take; a Loop is not run: what it reads would be garbage."""
    if file != manifest.graph or manifest.provider != CUDA:
        return []
    said = here.child("cuda_run_child.py", artifact / file, manifest, cudnn=not has_loop(artifact))
    return [f"{use}: {text}" for use, text in said.items() if text]


def differences(part: PlacedGraph, seen: Mapping[str, object]) -> list[str]:
    """Nodes that ONNX Runtime gave elsewhere, of those that it kept, and copies that one side lacks."""
    nodes, copies = seen["nodes"], seen["copies"]
    pairs = [(node, True) for node in part.provider] + [(node, False) for node in part.host]
    elsewhere = [
        f"{node.op_type} {node.name} is on {nodes[node.name or '']}"
        for node, on_cuda in pairs
        if node.name in nodes and (nodes[node.name] == CUDA) != on_cuda
    ]
    real = {(value, way) for value, way in copies.get(part.path, [])}
    return elsewhere + [f"{value} {way} in {part.path}" for value, way in sorted(predicted(part) ^ real)]


def predicted(part: PlacedGraph) -> Crossing:
    """The copies for which there has to be a Memcpy node."""
    ways = {True: "to the CPU", False: "to the GPU"}
    return {(copy.value.name or "", ways[copy.to_host]) for copy in part.copies if copy.how == "Memcpy"}


def row(parts: Sequence[PlacementPart], others: Sequence[str], refused: Sequence[str]) -> tuple[str, ...]:
    """One line of the table."""
    main, body = parts[0], next((part for part in parts if part.graph == "main/Loop.body"), None)
    crossing = body.copies if body is not None else (*main.copies, *main.edges)
    back = sum(copy.bytes for copy in crossing if copy.way == "to the CPU")
    beyond = [limit.outcome for part in parts for limit in part.limits]
    return (
        f"{sum(part.on_cuda for part in parts)}",
        f"{sum(part.on_cpu for part in parts)}",
        f"{sum(len(part.lacking) for part in parts)}",
        f"{sum(len(part.hot) for part in parts)}",
        f"{sum(outcome in (Outcome.OPEN, Outcome.RUN) for outcome in beyond)}",
        f"{beyond.count(Outcome.CUDNN)}",
        f"{sum(len(part.copies) for part in parts)}",
        f"{sum(copy.bytes for copy in crossing) - back:,}",
        f"{back:,}",
        f"{len(others)}",
        f"{len(refused)}",
    )


if __name__ == "__main__":
    raise SystemExit(main())
