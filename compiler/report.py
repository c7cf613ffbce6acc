"""Writing down what was measured: `report/report.json`, `report/index.md` and the plots."""

import json
import platform
from pathlib import Path

from onnxforge.compiler.evidence import Evidence, cpu_name, to_json, versions
from onnxforge.compiler.report_markdown import markdown
from onnxforge.compiler.report_plots import write_plots

REPORT = "report"
SCHEMA = 1


def write_report(evidence: Evidence, artifact: Path) -> None:
    """Write the ``report`` folder of ``artifact``; an older one's files are overwritten."""
    folder = artifact / REPORT
    folder.mkdir(parents=True, exist_ok=True)
    plots = write_plots(evidence, folder)
    (folder / "index.md").write_text(markdown(evidence, plots), encoding="utf-8")
    facts = {
        "schema": SCHEMA,
        "cpu": cpu_name(),
        "system": platform.platform(),
        "versions": versions(),
        "plots": sorted(plots),
        "evidence": evidence,
    }
    text = json.dumps(to_json(facts), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
