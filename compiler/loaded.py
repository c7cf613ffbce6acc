"""Loading an artifact for a verb, with a word about the other verb when it is of the other kind."""

from pathlib import Path

from onnxforge.compiler.errors import RequestRefused
from onnxforge.runtimes import Decoder, Encoder, Model, load


def load_any(
    folder: Path, threads: int | None, draft: str | None = None, cuda_graph: bool | None = None
) -> Model:
    """Whatever is in ``folder``; ``draft`` drafts for it, ``cuda_graph`` records its steps (see `load`)."""
    return load(folder, threads=threads, draft=draft, cuda_graph=cuda_graph)


def load_decoder(
    folder: Path, threads: int | None, draft: str | None = None, cuda_graph: bool | None = None
) -> Decoder:
    """The decoder in ``folder``, as :func:`load_any` loads it.

    Raises:
        ArtifactError: no whole artifact is there.
        RequestRefused: it is an encoder.
    """
    model = load_any(folder, threads, draft, cuda_graph)
    if isinstance(model, Decoder):
        return model
    model.close()
    raise RequestRefused(
        f"{folder} is an encoder ({model.manifest.task}): use `onnxforge embed {folder} TEXT`."
    )


def load_encoder(folder: Path, threads: int | None) -> Encoder:
    """The encoder in ``folder``; raises like :func:`load_decoder`."""
    model = load_any(folder, threads)
    if isinstance(model, Encoder):
        return model
    model.close()
    raise RequestRefused(
        f"{folder} is a decoder ({model.manifest.task}): use `onnxforge run {folder} PROMPT`."
    )
