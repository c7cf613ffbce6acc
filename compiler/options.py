"""Options that several verbs share."""

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of a compiled artifact.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result on stdout as JSON.")]
CudaGraph = Annotated[
    bool | None,
    typer.Option(
        "--cuda-graph/--no-cuda-graph",
        help="Have the GPU record a decoder's steps and replay them. Default: what the artifact says.",
        show_default=False,
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="On failure, show the traceback.")]
Threads = Annotated[int | None, typer.Option(help="Threads for one operator. Default: the physical cores.")]
