"""The report's section on quantizers: what fused, and what is left beside which float operator."""

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.quantizer_report import QuantizerReport

_MOST_QUANTIZERS = 20


def quantizer_section(found: QuantizerReport | None) -> str:
    """Markdown; empty for a graph without quantizers."""
    if found is None:
        return ""
    kernels = ", ".join(f"{count} {name}" for name, count in found.kernels.items()) or "none"
    head = (
        f"## Quantizers\n\n{found.written} QuantizeLinear and DequantizeLinear in the artifact; read from "
        f"{found.source}. Integer products: {kernels}. "
    )
    if not found.left:
        return head + "Every quantizer is part of one.\n"
    hot = set(found.hot)
    rows = [
        (
            f"`{item.node}`",
            f"{item.beside_op} `{item.beside}`",
            f"{item.weight_bytes:,}" if item.weight_bytes else "",
            f"{item.share:.2%}" if item.share else "",
            ("**error**: " if item in hot else "") + item.why,
        )
        for item in found.left[:_MOST_QUANTIZERS]
    ]
    header = ("quantizer", "beside", "weight, bytes", "of the multiplications", "why")
    more = len(found.left) - len(rows)
    tail = f"\n{more} more are in report.json.\n" if more else ""
    return head + "Left beside float operators:\n\n" + table(header, rows, right=(2, 3)) + tail
