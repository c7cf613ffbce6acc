"""``embed DIR TEXT...``: vectors, or how alike the texts are."""

import json
import sys
from typing import Annotated

import typer

from onnxforge.compiler.options import Artifact, AsJson, Debug, Threads

_Texts = Annotated[
    list[str] | None,
    typer.Argument(metavar="TEXT...", help="Texts. Default: the lines of stdin.", show_default=False),
]
_Similarity = Annotated[
    bool, typer.Option("--similarity", help="Print the matrix of cosines instead of vectors.")
]


def embed(
    folder: Artifact,
    texts: _Texts = None,
    similarity: _Similarity = False,
    normalize: Annotated[bool, typer.Option("--normalize", help="Scale every vector to length 1.")] = False,
    threads: Threads = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Encode texts: one JSON array per text, in order; one object with --json."""
    from onnxforge.compiler.loaded import load_encoder
    from onnxforge.compiler.terminal import piped_text

    with load_encoder(folder, threads) as model:
        wanted = texts or [line for line in piped_text().splitlines() if line.strip()]
        vectors = model.encode(wanted, normalize_embeddings=normalize or similarity)
    rows = (vectors @ vectors.T if similarity else vectors).tolist()
    if as_json:
        print(json.dumps({"texts": wanted, "similarity" if similarity else "embeddings": rows}))
    elif similarity and sys.stdout.isatty():
        for text, row in zip(wanted, rows, strict=True):
            print("  ".join(f"{value:6.3f}" for value in row), "", text[:60])
    else:
        for row in rows:
            print(json.dumps(row))
