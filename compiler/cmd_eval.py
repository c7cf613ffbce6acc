"""``eval DIR``: perplexity on texts as llama-perplexity prints it, and the divergence from a base."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from onnxforge.compiler.options import Artifact, AsJson, Debug

_Ppl = Annotated[
    list[Path] | None,
    typer.Option(
        "--ppl",
        "-f",
        "--file",
        metavar="FILE",
        help="UTF-8 text; repeatable. Default: half of pydoc_data.topics.",
    ),
]
_Base = Annotated[
    Path | None,
    typer.Option(
        "--base", "--kl", metavar="DIR", help="Artifact to hold the distributions (or vectors) against."
    ),
]
_Window = Annotated[
    int | None,
    typer.Option(
        "--ctx-size",
        "-c",
        "--window",
        min=2,
        metavar="N",
        help="Tokens per window. Default: 512; sentences: 128.",
    ),
]
_Stride = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Tokens between windows. Default: the window.")
]
_Windows = Annotated[
    int | None,
    typer.Option(
        "--chunks",
        "--windows",
        min=1,
        metavar="N",
        help="At most so many windows, evenly spaced. Default: all.",
    ),
]
_Unscored = Annotated[
    int,
    typer.Option(
        min=0, metavar="N", help="Context only: tokens that open each window. llama-perplexity: half of it."
    ),
]
_Run = Annotated[
    int,
    typer.Option(
        "--batch-size",
        "-b",
        min=0,
        metavar="N",
        help="Decode N tokens a run over the cache. Default, 0: all at once.",
    ),
]
_Sentences = Annotated[int, typer.Option(min=1, metavar="N", help="Encoders: sentences of each text.")]
_Provider = Annotated[
    str | None,
    typer.Option(help="Run on cpu, cuda or tensorrt. Default: what the artifact was compiled for."),
]


def eval_(
    folder: Artifact,
    ppl: _Ppl = None,
    base: _Base = None,
    ctx_size: _Window = None,
    stride: _Stride = None,
    chunks: _Windows = None,
    unscored: _Unscored = 0,
    batch_size: _Run = 0,
    sentences: _Sentences = 64,
    provider: _Provider = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score texts with a decoder: perplexity, and divergence from --base. An encoder: cosine to --base."""
    from onnxforge.compiler import eval_page
    from onnxforge.compiler.eval_text import evaluation_text
    from onnxforge.compiler.evaluate import Asked, open_pair, score_decoder, score_encoder
    from onnxforge.compiler.evidence import to_json

    texts = [evaluation_text(path) for path in ppl or (None,)]
    asked = Asked(ctx_size, stride, chunks, unscored, batch_size, sentences)
    model, other = open_pair(folder, base, provider)
    if model.is_decoder:
        scores = [score_decoder(model, other, text, asked, _say) for text in texts]
        found = eval_page.decoder_json(str(folder), str(base) if base else None, scores)
        page = eval_page.decoder_page(scores)
    else:
        assert other is not None
        vectors = [score_encoder(model, other, text, asked, _say) for text in texts]
        found = eval_page.encoder_json(str(folder), str(base), vectors)
        page = eval_page.encoder_page(vectors)
    print(json.dumps(to_json(found), indent=2, ensure_ascii=False) if as_json else page.rstrip("\n"))


def _say(where: str) -> None:
    print(where, file=sys.stderr, flush=True)
