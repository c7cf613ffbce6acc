"""Writing a benchmark's result beside its date and machine: `bench/results/NAME.json` and `.md`."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxforge.compiler.evidence import cpu_name, versions
from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.proof_session import threads

RESULTS = Path(__file__).parent / "results"


def record(
    name: str,
    title: str,
    facts: Mapping[str, object],
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    remarks: Sequence[str] = (),
    folder: Path = RESULTS,
) -> None:
    """Write both files into ``folder`` and print the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    date = time.strftime("%Y-%m-%d", time.gmtime())
    machine = {"cpu": cpu_name(), "threads": threads(), "date": date, "versions": versions()}
    content = {"title": title, "machine": machine, **facts}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    right = tuple(range(1, len(header)))
    lines = [f"# {title}", "", f"{machine['cpu']}, {machine['threads']} threads, {date}.", ""]
    lines += [table(header, rows, right=right), *(f"{remark}\n" for remark in remarks)]
    page = "\n".join(lines)
    (folder / f"{name}.md").write_text(page)
    print(page)
