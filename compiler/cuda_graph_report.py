"""What recorded steps bring on a GPU, as the proof measured it, and what follows for the artifact."""

from collections.abc import Mapping
from dataclasses import dataclass

from onnxforge.compiler.markdown_table import table
from onnxforge.compiler.speed_types import SpeedReport
from onnxforge.runtimes.session import CUDA_GRAPH

_WORTHWHILE = 1.03
"""Times as fast, at least: recordings keep memory, and requests take turns."""


@dataclass(frozen=True)
class CudaGraphReport:
    """Decoding, token by token, in one process without and in one with recorded steps, interleaved."""

    plain: SpeedReport
    recorded: SpeedReport

    @property
    def ratio(self) -> float:
        """Rate with recorded steps over the rate without: the lesser of the tests'."""
        pairs = zip(self.recorded.timings, self.plain.timings, strict=True)
        return min(ours.median / theirs.median for ours, theirs in pairs)

    @property
    def enabled(self) -> bool:
        """Whether requests record their steps by default."""
        return self.ratio >= _WORTHWHILE

    @property
    def options(self) -> Mapping[str, str]:
        """What ``artifact.json`` says to the provider."""
        return {CUDA_GRAPH: "1"} if self.enabled else {}


def cuda_graph_section(found: CudaGraphReport | None) -> str:
    """The report's section; nothing where nothing was measured."""
    if found is None:
        return ""
    state = "on" if found.enabled else f"off, since less than {_WORTHWHILE}x"
    rows = [
        (
            ours.test.name,
            f"{theirs.median:,.1f}",
            f"{ours.median:,.1f}",
            f"{ours.median / theirs.median:.2f}x",
        )
        for ours, theirs in zip(found.recorded.timings, found.plain.timings, strict=True)
    ]
    head = (
        f"## CUDA graphs\n\nSteps recorded once and replayed. By default **{state}**. tokens/s, medians.\n\n"
    )
    return head + table(("test", "plain steps", "recorded", "ratio"), rows, right=(1, 2, 3))
