"""The CPU's part of a token on CUDA: what a step costs before any GPU has computed anything.

    python bench/cuda_host_time.py --gpu-python /tmp/gpu/bin/python build/smollm2-cuda-int8 ...

The real onnxruntime-gpu and our runtime run over libraries that compute nothing (see cuda_stub.py): a GPU
that takes no time at all. Steps launch their kernels one by one, or are replayed as CUDA graphs. GPU_PYTHON
needs onnxruntime-gpu, numpy, tokenizers and jinja2. Interleaved rounds, each in a process of its own.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import cuda_stub
from record import record

from onnxforge.runtimes.artifact import read_manifest

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-python", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("artifacts", type=Path, nargs="+")
    asked = parser.parse_args()
    child = Path(__file__).with_name("cuda_host_time_child.py")
    rows = []
    with tempfile.TemporaryDirectory(prefix="cuda-stub-") as temp:
        cuda_stub.build(cuda_stub.provider_of(asked.gpu_python), Path(temp))
        names = Path(temp) / "names"
        (names / "onnxforge").mkdir(parents=True)
        (names / "onnxforge" / "runtimes").symlink_to(ROOT / "runtimes")
        for artifact in asked.artifacts:
            said = [
                json.loads(
                    cuda_stub.run(
                        asked.gpu_python, child, Path(temp), str(artifact), path=names
                    ).splitlines()[-1]
                )
                for _ in range(asked.rounds)
            ]
            for batch in said[0]:
                plain, replayed = (
                    statistics.median(one[batch][way] for one in said) for way in ("plain", "replayed")
                )
                name = f"{read_manifest(artifact).target}, {batch} sequences"
                rows.append((name, f"{plain:.2f}", f"{replayed:.2f}", f"{plain / replayed:.2f}x"))
    record(
        "cuda_host_time",
        "Milliseconds of CPU time per decoding step on CUDA, over libraries that compute nothing",
        {"rounds": asked.rounds, "rows": rows},
        ("SmolLM2-135M", "kernel by kernel", "replayed", "ratio"),
        rows,
    )


if __name__ == "__main__":
    main()
