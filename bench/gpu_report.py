"""The page of `gpu.py`: all tables and the verdict."""

import re

import gpu_table
from gpu_rows import Rows
from gpu_verdict import verdict
from record import record

from onnxforge.compiler.markdown_table import table

_FORMS = ("form", "written as", "operators after ONNX Runtime's optimizations", "nodes before them", "error")
_QUALITY = ("model", "target", "ratio to cpu-fp32", "top-1", "largest difference")
_ITSELF = ("top-1, to itself on the CPU", "largest difference to it")
_LOOPS = (
    "model", "target", "drafts", "runtime, tokens/s", "host loop of the same rule", "loop in the graph",
    "tokens as runtime's", "as the same rule's",
)  # fmt: skip
_ROWS = (
    "model", "target", "positions", "top token differs from steps of one", "largest difference",
    "from steps of two", "largest difference ",
)  # fmt: skip
_ENCODERS = ("model", "target", "batch x tokens", "sentences/s")


def slug(device: str) -> str:
    """The device in a file's name: ``nvidia-h100-80gb-hbm3``."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def write_report(rows: Rows, said: list[str]) -> None:
    """Write the page beside the rows, which stay in its JSON file, and print it."""
    header, lines = gpu_table.SPEED_HEADER, gpu_table.speed_table(rows)
    title = f"CUDA targets on {rows.identity['device']}"
    parts = [*verdict(rows), _ceilings(rows), *said, *_parts(rows)]
    lines = lines or [("nothing measured", *[""] * (len(header) - 1))]
    record(rows.path.stem, title, rows.facts(), header, lines, parts, rows.path.parent)


def _parts(rows: Rows) -> list[str]:
    """The other tables, those with a line only."""
    tables = [
        ("Which form is fastest", *gpu_table.winner_table(rows, 8)),
        ("Which form of 4 bits is fastest", *gpu_table.winner_table(rows, 4)),
        ("What becomes of the forms", _FORMS, gpu_table.form_table(rows)),
        ("Products, in microseconds (percent of the bound)", *gpu_table.product_table(rows)),
        ("Quality", (*_QUALITY, *_ITSELF), gpu_table.quality_table(rows)),
        ("The loop in the graph", _LOOPS, gpu_table.loop_table(rows)),
        ("A step of eight tokens against eight steps", _ROWS, gpu_table.independence_table(rows)),
        ("Encoders", _ENCODERS, gpu_table.encoder_table(rows)),
        ("What failed", ("row", "why"), list(rows.failures().items())),
    ]
    return [f"## {title}\n\n{table(header, lines)}" for title, header, lines in tables if lines]


def _ceilings(rows: Rows) -> str:
    found = rows.get("ceilings")
    if not found:
        return "The device's bandwidth and throughput were not measured: no bounds."
    return (
        f"Bounds: {found['copy_bytes_per_second'] / 1e9:,.0f} GB/s in a copy, "
        f"{found['row_bytes_per_second'] / 1e9:,.0f} GB/s reading the matrix of a product of one row, "
        f"{found['operations_per_second'] / 1e9:,.0f} GFLOP/s in a large product, all through ONNX Runtime; "
        "the bound of a step is its weights and cache over the faster of the two, that of a prompt its "
        "products with weights over the third. Weights are random except in smollm2-135m and minilm-l6. "
        "Targets without a note: no CUDA graph; a star: the runtime warned, see above. Speeds are medians of "
        "rounds that took turns; spread: of the rounds' medians. Memory: what the process took of the "
        "device's, CUDA's own left out. Products are replayed as CUDA graphs where that works."
    )
