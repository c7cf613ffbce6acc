"""Where ONNX Runtime puts each node of CUDA artifacts, beside what `compiler/placement.py` predicts.

    python bench/cuda_placement.py --gpu-python /tmp/gpu/bin/python build/smollm2-cuda-int8 ...

No GPU: the real onnxruntime-gpu loads each graph over libraries that compute nothing (see cuda_stub.py). What
it decides is seen; nothing is run, and what lies where between steps of a Loop is not shown by it.
"""

import argparse
import json
import tempfile
from pathlib import Path

import cuda_stub
from record import record

from onnxforge.compiler.loop_check import has_loop
from onnxforge.compiler.placement import PlacedGraph, place
from onnxforge.compiler.placement_report import load_typed
from onnxforge.passes.add_speculative_loop import AddSpeculativeLoop
from onnxforge.runtimes.artifact import read_manifest

CUDA = "CUDAExecutionProvider"
Crossing = set[tuple[str, str]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-python", type=Path, required=True)
    parser.add_argument("artifacts", type=Path, nargs="+")
    asked = parser.parse_args()
    rows, wrong, version = [], [], ""
    with tempfile.TemporaryDirectory(prefix="cuda-stub-") as temp:
        cuda_stub.build(cuda_stub.provider_of(asked.gpu_python), Path(temp))
        for artifact in asked.artifacts:
            manifest = read_manifest(artifact)
            for file in (manifest.graph, *([AddSpeculativeLoop.file] if has_loop(artifact) else [])):
                entries = [f"{key}={value}" for key, value in manifest.session.items()]
                child = Path(__file__).with_name("cuda_placement_child.py")
                said = cuda_stub.run(asked.gpu_python, child, Path(temp), str(artifact / file), *entries)
                seen = json.loads(said.splitlines()[-1])
                version = seen["version"]
                for part in place(load_typed(artifact / file)):
                    real = {(value, way) for value, way in seen["copies"].get(part.path, [])}
                    elsewhere = _elsewhere(part, seen["nodes"])
                    name = f"{artifact.name} {Path(file).name} {part.path}"
                    rows.append((name, *_row(part, real, elsewhere)))
                    wrong += [f"{name}: {node}" for node in elsewhere]
                    wrong += [f"{name}: {copy}" for copy in sorted(_predicted(part) ^ real)]
    record(
        "cuda_placement",
        "Placement on CUDA: predicted, and by ONNX Runtime itself over stub libraries, without a GPU",
        {"onnxruntime-gpu": version, "rows": rows, "wrong": wrong},
        ("graph", "on CUDA", "on the CPU", "of other opinion", "copies predicted", "copies seen", "both"),
        rows,
        [f"Different: {line}." for line in wrong] or ["Every node and every copy as predicted."],
    )
    return 1 if wrong else 0


def _elsewhere(part: PlacedGraph, nodes: dict[str, str]) -> list[str]:
    """Nodes that ONNX Runtime gave to another provider; those that it folded or fused are not among them."""
    pairs = [(node, True) for node in part.provider] + [(node, False) for node in part.host]
    return [
        f"{node.op_type} {node.name} is on {nodes[node.name or '']}"
        for node, on_cuda in pairs
        if node.name in nodes and (nodes[node.name] == CUDA) != on_cuda
    ]


def _predicted(part: PlacedGraph) -> Crossing:
    ways = {True: "to the CPU", False: "to the GPU"}
    return {(copy.value.name or "", ways[copy.to_host]) for copy in part.copies if copy.how == "Memcpy"}


def _row(part: PlacedGraph, real: Crossing, elsewhere: list[str]) -> tuple[str, ...]:
    predicted = _predicted(part)
    numbers = (len(part.provider), len(part.host), len(elsewhere), len(predicted), len(real))
    return (*map(str, numbers), str(len(predicted & real)))


if __name__ == "__main__":
    raise SystemExit(main())
