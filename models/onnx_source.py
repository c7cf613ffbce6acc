"""An existing ``.onnx`` file as a source: the graph, and the config and tokenizer that stand near it."""

from pathlib import Path

from onnxforge.models.errors import SourceError
from onnxforge.models.files import contained, sha256
from onnxforge.models.hf_folder import read_config
from onnxforge.models.onnx_file import read_onnx
from onnxforge.models.sidecars import sidecar_files
from onnxforge.models.source import Source, SourceKind


def open_onnx(path: Path, ref: str) -> Source:
    """Check the file and gather what stands beside it, or one folder up (``onnx/model.onnx``).

    The graph itself is read by :func:`~onnxforge.models.onnx_contract.load_graph`.

    Raises:
        SourceError: the graph cannot be read, or ``config.json`` is in neither place; all problems at once.
    """
    graph = Path(path.parent.resolve(), path.name)
    places = [place for place in (graph.parent, graph.parent.parent) if (place / "config.json").exists()]
    if not places:
        raise SourceError(
            f"{ref}: config.json is neither beside the graph nor one folder up. It tells the context length "
            "and the token ids; copy it and the tokenizer files from the model's repository to the graph's "
            "folder."
        )
    root = places[0]
    problems: list[str] = []
    sidecars = sidecar_files(root, problems)
    data = read_onnx(graph).data_files
    if problems:
        raise SourceError.listing(f"{root} cannot be compiled", problems, "Fetch the model again.")
    weights = {f"{(graph.parent / name).relative_to(root)}": contained(graph.parent, name) for name in data}
    files = {str(graph.relative_to(root)): graph.resolve()} | weights
    files |= {name: contained(root, name) for name in ("config.json", *sidecars) if (root / name).exists()}
    return Source(
        ref=ref,
        kind=SourceKind.ONNX,
        config=read_config(root),
        sidecars=sidecars,
        graph=graph,
        digests={name: sha256(real) for name, real in files.items()},
    )
