"""What removing channels, heads and layers gains: bytes, prefill and decode, side by side.

    python bench/pruning_speed.py [--target cpu-fp32] [--rounds 5]

Speed depends on shapes alone, so units are chosen by the size of their weights, which takes no calibration;
`bench/pruning_quality.py` has what better choices cost. Each artifact is in a process of its own and all are
timed in turns. `cpu-int8` is calibrated, so its rows take minutes to build.
"""

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from record import record
from targets import DECODE, PREFILL

from onnxforge.compiler.build import build
from onnxforge.compiler.prune_option import ahead_of_pruning
from onnxforge.compiler.speed import measure
from onnxforge.compiler.targets import TARGETS, Target
from onnxforge.models import export_model, open_model
from onnxforge.models.tasks import task_for

SHARES = (0.05, 0.1, 0.2, 0.3)
PLAIN = "score=magnitude,refit=false"
ROWS = {
    "whole": "",
    **{f"mlp={share:g}": f"prune-mlp{{share={share},{PLAIN}}}" for share in SHARES},
    **{f"heads={share:g}": f"prune-heads{{share={share},{PLAIN}}}" for share in SHARES},
    "kv-heads=0.34": f"prune-heads{{share=0.34,unit=group,{PLAIN}}}",
    **{
        f"layers={count}": f"rank-layers{{count={count},by=magnitude}} prune-layers{{count={count}}}"
        for count in (2, 3, 6, 9)
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--target", default="cpu-fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--name", default="")
    asked = parser.parse_args()
    target = next(row for row in TARGETS if row.name == asked.target)
    source = open_model(asked.model)
    exported = export_model(source)
    with tempfile.TemporaryDirectory() as temp:
        folders = {}
        for name, steps in ROWS.items():
            folders[name] = Path(temp) / name
            folders[name].mkdir()
            build(source, exported, with_steps(target, steps), task_for(source), folders[name], name=name)
            print(name, flush=True)
        speeds = measure(folders, (PREFILL, DECODE), rounds=asked.rounds)
        sizes = {
            name: sum(path.stat().st_size for path in (folder / "onnx").iterdir())
            for name, folder in folders.items()
        }
    rows = []
    for name in ROWS:
        ratios = [
            speeds[name].timing(test.name).median / speeds["whole"].timing(test.name).median
            for test in (PREFILL, DECODE)
        ]
        share = sizes[name] / sizes["whole"]
        rows.append((name, f"{share:.3f}x", f"{1 / share:.3f}x", *(f"{ratio:.2f}x" for ratio in ratios)))
    record(
        asked.name or f"pruning_speed_{asked.target}",
        f"Pruning {asked.model} for {asked.target}: speed",
        {"sizes": sizes, "speeds": {name: asdict(found) for name, found in speeds.items()}},
        ("removed", "bytes", "bytes saved as speed", PREFILL.name, DECODE.name),
        rows,
    )
    return 0


def with_steps(target: Target, steps: str) -> Target:
    """``target`` with ``steps``, written in a row, where pruning runs."""
    ahead = ahead_of_pruning(target)
    return replace(target, passes=(*ahead, *steps.split(), *target.passes[len(ahead) :]), expects={})


if __name__ == "__main__":
    raise SystemExit(main())
