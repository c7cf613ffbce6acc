"""``targets``: the table."""

import json

from onnxforge.compiler.options import AsJson, Debug
from onnxforge.compiler.target_file import to_mapping
from onnxforge.compiler.targets import TARGETS


def targets(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the targets with their passes, session settings and promises."""
    if as_json:
        print(json.dumps([to_mapping(target) for target in TARGETS], indent=2))
        return
    for target in TARGETS:
        print(f"{target.name}: {target.summary}")
        print(f"    provider  {target.provider}")
        print(f"    promises  {', '.join(line.text() for line in target.budget)}")
        print("    passes    " + "\n              ".join(target.passes))
