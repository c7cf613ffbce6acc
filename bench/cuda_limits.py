"""Hold every limit in `compiler/cuda_limits.toml` against onnxruntime-gpu itself, without a GPU.

    python bench/cuda_limits.py --gpu-python /tmp/gpu/bin/python

Over libraries that compute nothing (see cuda_stub.py) sessions open and kernels run: what they launch does
nothing, but what they check first, they check. A graph beyond a limit has to be refused with the words of the
table, at the moment that it names; one within has to run.
"""

import argparse
import json
import tempfile
from pathlib import Path

import cuda_stub
from record import record

from onnxforge.compiler.cuda_limits import Outcome, limits

EXPECTED = {Outcome.CPU: ("cpu",), Outcome.OPEN: ("open",), Outcome.RUN: ("run",)}
"""Where an answer has to come; cuDNN is asked for by some constructors and by most kernels."""
WITHOUT_CUDNN = ("open", "run")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpu-python", type=Path, required=True)
    asked = parser.parse_args()
    graphs = [graph for limit in limits() for graph in (*limit.breaks, *limit.holds)]
    with tempfile.TemporaryDirectory(prefix="cuda-stub-") as temp:
        cuda_stub.build(cuda_stub.provider_of(asked.gpu_python), Path(temp))
        cases = Path(temp) / "graphs.json"
        cases.write_text(json.dumps(graphs))
        child = Path(__file__).with_name("cuda_limits_child.py")
        said = cuda_stub.run(asked.gpu_python, child, Path(temp), str(cases))
    found = json.loads(said.splitlines()[-1])
    answers, rows, wrong = iter(found["answers"]), [], []
    for limit in limits():
        expected = EXPECTED.get(limit.outcome, WITHOUT_CUDNN)
        beyond = [next(answers) for _ in limit.breaks]
        within = [next(answers) for _ in limit.holds]
        words = limit.said * len(beyond) if len(limit.said) == 1 else limit.said
        good = [when in expected and said in text for (when, text), said in zip(beyond, words, strict=True)]
        fine = [when == "ran" for when, _ in within]
        rows.append(
            (limit.name, limit.outcome.words, f"{sum(good)} of {len(good)}", f"{sum(fine)} of {len(fine)}")
        )
        wrong += [f"{limit.name}: {answer}" for answer, ok in zip(beyond, good, strict=True) if not ok]
        wrong += [
            f"{limit.name}, within: {answer}" for answer, ok in zip(within, fine, strict=True) if not ok
        ]
    record(
        "cuda_limits",
        "Limits of CUDA kernels, as ONNX Runtime itself refuses what is beyond them, without a GPU",
        {"onnxruntime-gpu": found["version"], "rows": rows, "wrong": wrong},
        ("limit", "beyond it", "refused so", "within, runs"),
        rows,
        [f"Different: {line}." for line in wrong] or ["Every graph is answered as the table says."],
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
