"""Open an artifact folder: check it, start its session, give back the model that fits its task."""

from pathlib import Path
from typing import Literal

from onnxforge.runtimes.artifact import DECODER_TASK, Manifest, read_manifest
from onnxforge.runtimes.chat_template import read_chat_template
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.decoder_graph import DecoderGraph, read_graph
from onnxforge.runtimes.encoder import Encoder
from onnxforge.runtimes.encoder_settings import read_encoder_settings
from onnxforge.runtimes.errors import RequestError
from onnxforge.runtimes.generation_options import options_from_config
from onnxforge.runtimes.session import device_of, open_session, options_for, provider_name
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
) -> Model:
    """Load an artifact folder that compile wrote.

    `provider` is ``cpu``, ``cuda``, ``tensorrt`` or a full name; by default the one it was compiled for.
    `threads` is the number of CPU threads of one run. `verify`: ``cached`` hashes a large file only when it
    changed since it last passed, ``full`` hashes everything, ``off`` trusts the folder.
    `draft` is the folder of a smaller decoder with the same tokenizer, which then drafts for every request
    (speculative decoding) that does not say otherwise.
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
    session = open_session(
        folder / manifest.graph, name, manifest.session, threads, options_for(name, manifest)
    )
    config = read_optional_json(folder / "config.json")
    if manifest.task != DECODER_TASK:
        settings = read_encoder_settings(folder, manifest, config)
        tokenizer = TextTokenizer(folder, max_length=settings.max_length)
        return Encoder(folder, manifest, session, tokenizer, settings)
    tokenizer = TextTokenizer(folder)
    size = config.get("vocab_size")
    graph = read_graph(
        session,
        device_of(name),
        manifest.context_length,
        manifest.shared_cache,
        size if isinstance(size, int) else tokenizer.size,
    )
    defaults = options_from_config(read_optional_json(folder / "generation_config.json"), config)
    template = read_chat_template(folder, tokenizer.special_tokens)
    assistant = None if draft is None else _load_draft(Path(draft), provider, threads, verify)
    own = None if assistant is not None else _own_draft(folder, manifest, name, threads, graph.vocabulary)
    return Decoder(folder, manifest, graph, tokenizer, template, defaults, assistant, own)


def _own_draft(
    folder: Path, manifest: Manifest, provider: str, threads: int | None, vocabulary: int
) -> DecoderGraph | None:
    """The draft that an artifact brings for itself (layers left out, on the same weight file)."""
    speculation = manifest.speculation
    if speculation is None or not speculation.enabled or speculation.draft_graph is None:
        return None
    session = open_session(
        folder / speculation.draft_graph, provider, manifest.session, threads, options_for(provider, manifest)
    )
    device = device_of(provider)
    return read_graph(session, device, manifest.context_length, manifest.shared_cache, vocabulary)


def _load_draft(folder: Path, provider: str | None, threads: int | None, verify: Verify) -> Decoder:
    found = load(folder, provider=provider, threads=threads, verify=verify)
    if not isinstance(found, Decoder):
        raise RequestError(f"{folder} is an encoder ({found.manifest.task}) and cannot draft tokens.")
    return found
