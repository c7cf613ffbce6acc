"""``eval DIR``: perplexity on a text, as llama-perplexity prints it, and the divergence from a base."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxforge.compiler.options import Artifact, AsJson, Debug

if TYPE_CHECKING:
    from onnxforge.compiler.proof_session import GraphSession

_Ppl = Annotated[
    Path | None,
    typer.Option("--ppl", metavar="FILE", help="UTF-8 text. Default: half of pydoc_data.topics."),
]
_Kl = Annotated[
    Path | None, typer.Option("--kl", metavar="BASE_DIR", help="Artifact to hold the distributions against.")
]
_Window = Annotated[int, typer.Option(min=2, help="Tokens per window.")]
_Stride = Annotated[int | None, typer.Option(min=1, help="Tokens between windows. Default: the window.")]
_Windows = Annotated[
    int | None, typer.Option(min=1, help="At most so many windows, evenly spaced. Default: every one.")
]


def eval_(
    folder: Artifact,
    ppl: _Ppl = None,
    kl: _Kl = None,
    window: _Window = 512,
    stride: _Stride = None,
    windows: _Windows = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Score a text with a compiled decoder: perplexity, and KL divergence and top-1 agreement with --kl."""
    from onnxforge.compiler.eval_text import cut, evaluation_text
    from onnxforge.compiler.perplexity import compare, perplexity

    model = _decoder(folder)
    length = min(window, model.manifest.context_length)
    text = evaluation_text(ppl)
    pieces, protocol = cut(text, model.tokenizer(), window=length, stride=stride, limit=windows)
    divergence = compare(_decoder(kl), model, pieces) if kl is not None else None
    found = divergence.candidate if divergence else perplexity(model, pieces)
    if as_json:
        content = {
            "perplexity": found.value,
            "error": found.error,
            "nll": found.nll,
            "tokens": found.tokens,
            **{key: value for key, value in dataclasses.asdict(protocol).items() if key != "scored_tokens"},
        }
        if divergence:
            content |= {
                "base_perplexity": divergence.reference.value,
                "ratio": divergence.ratio,
                "ratio_error": divergence.ratio_error,
                "kl": divergence.mean_kl,
                "max_kl": divergence.max_kl,
                "top1": divergence.top1_agreement,
                "max_abs_logit_diff": divergence.max_abs_logit_diff,
            }
        print(json.dumps(content, indent=2))
        return
    print(protocol.sentence())
    print(f"PPL = {found.value:.4f} +/- {found.error:.5f}")
    if divergence:
        print(f"Mean PPL(base) = {divergence.reference.value:.4f} +/- {divergence.reference.error:.5f}")
        print(f"PPL(Q)/PPL(base) = {divergence.ratio:.6f} +/- {divergence.ratio_error:.6f}")
        print(f"Mean KLD = {divergence.mean_kl:.6g}")
        print(f"Maximum KLD = {divergence.max_kl:.6g}")
        print(f"Same top p = {100 * divergence.top1_agreement:.3f}%")


def _decoder(folder: Path) -> "GraphSession":
    """The graph in ``folder``, once its files are known to be the ones that were written.

    Raises:
        ArtifactError: they are not.
        EvaluationError: it is an encoder.
    """
    from onnxforge.compiler.eval_text import EvaluationError
    from onnxforge.compiler.proof_session import GraphSession
    from onnxforge.runtimes.verify import verify_files

    verify_files(folder)
    model = GraphSession(folder)
    if not model.is_decoder:
        raise EvaluationError(f"{folder} holds an encoder; perplexity is a decoder's measure.")
    return model
