"""Open an artifact folder: check it, start its session, give back the model that fits its task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxforge.runtimes.artifact import DECODER_TASK, Manifest, read_manifest
from onnxforge.runtimes.captured_steps import CapturedSteps
from onnxforge.runtimes.chat_template import read_chat_template
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.decoder_graph import SKIP_LAYERS, read_graph
from onnxforge.runtimes.encoder import Encoder
from onnxforge.runtimes.encoder_settings import read_encoder_settings
from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.generation_options import options_from_config
from onnxforge.runtimes.session import (
    CUDA_GRAPH,
    cuda_graph_hindrance,
    device_of,
    open_session,
    options_for,
    provider_name,
)
from onnxforge.runtimes.speculation import DRAFT_MODEL, LAYER_SKIP, Speculation
from onnxforge.runtimes.strict_json import read_optional_json
from onnxforge.runtimes.text_tokenizer import TextTokenizer
from onnxforge.runtimes.verify import verify_files

Model = Decoder | Encoder
Verify = Literal["cached", "full", "off"]


def load(
    path: str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    verify: Verify = "cached",
    draft: str | Path | None = None,
    cuda_graph: bool | None = None,
) -> Model:
    """Load an artifact folder that compile wrote.

    `provider` is ``cpu``, ``cuda``, ``tensorrt`` or a full name; by default the one it was compiled for.
    `threads` is the number of CPU threads of one run. `verify`: ``cached`` hashes a large file only when it
    changed since it last passed, ``full`` hashes everything, ``off`` trusts the folder.
    `draft` is the folder of a smaller decoder with the same tokenizer, which then drafts for every request
    (speculative decoding) that does not say otherwise; or ``layer-skip``: the model drafts for itself,
    without the layers that it was compiled to leave out; or ``draft-model``: the smaller one that it was
    compiled with. By default what the artifact says.
    `cuda_graph` has a GPU record a decoder's steps and replay them, which saves most of the CPU's work for
    each token; runs of the session then take turns, and memory of ended requests is kept for next ones. By
    default what the artifact says.
    Raises ArtifactError when the folder is not the artifact that was written, RequestError when this machine
    cannot run it as asked.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if draft is not None and manifest.task != DECODER_TASK:
        raise RequestError(f"{folder} is an encoder ({manifest.task}): nothing can be drafted for it.")
    if verify not in ("cached", "full", "off"):
        raise RequestError(f"verify is {verify!r}; pass 'cached', 'full' or 'off'.")
    if verify != "off":
        verify_files(folder, full=verify == "full")
    name = provider_name(provider or manifest.provider)
    own = _own_draft(folder, manifest.speculation, draft)
    file = folder / (own.graph or manifest.graph)
    options = _provider_options(folder, manifest, name, own, cuda_graph)
    session = open_session(file, name, manifest.session, threads, options)
    config = read_optional_json(folder / "config.json")
    if manifest.task != DECODER_TASK:
        settings = read_encoder_settings(folder, manifest, config)
        tokenizer = TextTokenizer(folder, max_length=settings.max_length)
        return Encoder(folder, manifest, session, tokenizer, settings)
    tokenizer = TextTokenizer(folder)
    size = config.get("vocab_size")
    vocabulary = size if isinstance(size, int) else tokenizer.size
    steps = CapturedSteps() if CUDA_GRAPH in options else None
    context, shared = manifest.context_length, manifest.shared_cache
    graph = read_graph(session, device_of(name), context, shared, vocabulary, steps)
    if own.graph is not None and not graph.skips_layers:
        raise ArtifactError(f"{file}: no input {SKIP_LAYERS}, so it leaves no layer out. Compile again.")
    defaults = options_from_config(read_optional_json(folder / "generation_config.json"), config)
    template = read_chat_template(folder, tokenizer.special_tokens)
    assistant = None
    if own.model is not None:  # its files are files of this artifact, and were verified as such
        assistant = _load_draft(folder / own.model, provider, threads, "off", cuda_graph)
    elif draft is not None and own.graph is None:
        assistant = _load_draft(Path(draft), provider, threads, verify, cuda_graph)
    return Decoder(folder, manifest, graph, tokenizer, template, defaults, assistant)


@dataclass(frozen=True)
class _OwnDraft:
    """What the artifact itself brings to draft, as far as drafts are to come of it."""

    graph: str | None = None
    """The graph that can leave layers out."""
    model: str | None = None
    """The folder of the smaller model."""


def _own_draft(folder: Path, said: Speculation | None, draft: str | Path | None) -> _OwnDraft:
    usual = said.drafter if draft is None and said is not None and said.enabled else None
    wanted = draft if draft in (LAYER_SKIP, DRAFT_MODEL) else usual
    if wanted == LAYER_SKIP:
        if said is None or said.draft_graph is None:
            raise _lacking(folder, "layer skip", "--draft layer-skip", LAYER_SKIP)
        return _OwnDraft(graph=said.draft_graph)
    if wanted == DRAFT_MODEL:
        if said is None or said.draft_model is None:
            raise _lacking(folder, "a draft model", "--draft prune-layers=0.5", DRAFT_MODEL)
        return _OwnDraft(model=said.draft_model)
    return _OwnDraft()


def _lacking(folder: Path, what: str, option: str, word: str) -> RequestError:
    return RequestError(
        f"{folder} was compiled without {what}: compile it again with `{option}`. "
        f"(A folder of this name is `./{word}`.)"
    )


def _provider_options(
    folder: Path, manifest: Manifest, provider: str, own: _OwnDraft, cuda_graph: bool | None
) -> dict[str, str]:
    """The options that `provider` gets; CUDA graphs are among them only if steps are to be recorded."""
    options = options_for(provider, manifest)
    usual = manifest.provider_options.get(CUDA_GRAPH) == "1"
    hindrance = cuda_graph_hindrance(manifest, provider)
    if own.graph is not None:
        hindrance = "the graph that leaves layers out has branches, and a recording has none"
    if cuda_graph and hindrance is not None:
        raise RequestError(f"{folder}: cuda_graph=True is not possible: {hindrance}.")
    wanted = usual if cuda_graph is None else cuda_graph
    return {**options, CUDA_GRAPH: "1"} if wanted and hindrance is None else {**options}


def _load_draft(
    folder: Path, provider: str | None, threads: int | None, verify: Verify, cuda_graph: bool | None
) -> Decoder:
    found = load(folder, provider=provider, threads=threads, verify=verify, cuda_graph=cuda_graph)
    if not isinstance(found, Decoder):
        raise RequestError(f"{folder} is an encoder ({found.manifest.task}) and cannot draft tokens.")
    return found
