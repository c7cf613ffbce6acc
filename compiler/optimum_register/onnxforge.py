"""``optimum-cli export onnxforge``: the compile command under optimum's roof.

optimum looks for files in the namespace ``optimum.commands.register`` of every installed distribution;
packaging puts this one there. Nothing heavy is imported before the command runs.
"""

import sys
from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class OnnxforgeExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum carries no types
    """``optimum-cli export onnxforge --model X --target cpu-int8 OUT``."""

    COMMAND = CommandInfo(name="onnxforge", help="Compile to a fused, quantized and proven ONNX artifact.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the options; they are those of ``onnxforge compile``."""
        parser.add_argument("-m", "--model", required=True, help="Folder, org/name, .gguf or .onnx file.")
        parser.add_argument("-t", "--target", required=True, help="See `onnxforge targets`.")
        parser.add_argument("--task", help="Default: what the model's configuration implies.")
        parser.add_argument("--revision", help="Branch, tag or commit of a hub model.")
        parser.add_argument("--calibration", help="A .txt or .jsonl file, a data set, or `self`.")
        parser.add_argument("--no-proof", action="store_true", help="Do not measure against the source.")
        parser.add_argument("output", help="Folder to write.")

    def run(self) -> None:
        """Run ``onnxforge compile`` and leave with its exit code."""
        from onnxforge.compiler.cli import run_verb

        asked = {
            "--target": self.args.target,
            "--task": self.args.task,
            "--revision": self.args.revision,
            "--calibration": self.args.calibration,
        }
        options = [word for name, value in asked.items() if value for word in (name, value)]
        proof = ["--no-proof"] if self.args.no_proof else []
        sys.exit(run_verb("compile", [self.args.model, "-o", self.args.output, *options, *proof]))


REGISTER_COMMANDS = [(OnnxforgeExportCommand, ExportCommand)]
