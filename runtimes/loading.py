"""Open an artifact folder: check it, start its session, give back the model that fits its task."""

from pathlib import Path
from typing import Literal

from onnxforge.runtimes.artifact import DECODER_TASK, Manifest, read_manifest
from onnxforge.runtimes.chat_template import read_chat_template
from onnxforge.runtimes.decoder import Decoder
from onnxforge.runtimes.decoder_graph import SKIP_LAYERS, read_graph
from onnxforge.runtimes.encoder import Encoder
from onnxforge.runtimes.encoder_settings import read_encoder_settings
from onnxforge.runtimes.errors import ArtifactError, RequestError
from onnxforge.runtimes.generation_options import options_from_config
from onnxforge.runtimes.session import device_of, open_session, options_for, provider_name
from onnxforge.runtimes.speculation import LAYER_SKIP
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
    (speculative decoding) that does not say otherwise; or ``layer-skip``: the model drafts for itself,
    without the layers that it was compiled to leave out.
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
    skipping = _skipping_graph(folder, manifest, draft)
    file = folder / (skipping or manifest.graph)
    session = open_session(file, name, manifest.session, threads, options_for(name, manifest))
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
    if skipping is not None and not graph.skips_layers:
        raise ArtifactError(f"{file}: no input {SKIP_LAYERS}, so it leaves no layer out. Compile again.")
    defaults = options_from_config(read_optional_json(folder / "generation_config.json"), config)
    template = read_chat_template(folder, tokenizer.special_tokens)
    other = draft is not None and draft != LAYER_SKIP
    assistant = _load_draft(Path(draft or ""), provider, threads, verify) if other else None
    return Decoder(folder, manifest, graph, tokenizer, template, defaults, assistant)


def _skipping_graph(folder: Path, manifest: Manifest, draft: str | Path | None) -> str | None:
    """The graph that can leave layers out, where drafts are to come of it."""
    said = manifest.speculation
    if draft == LAYER_SKIP and (said is None or said.draft_graph is None):
        raise RequestError(
            f"{folder} was compiled without layer skip: compile it again with `--draft layer-skip`. "
            f"(A folder of this name is `./{LAYER_SKIP}`.)"
        )
    usual = draft is None and said is not None and said.enabled and said.drafter == LAYER_SKIP
    return said.draft_graph if said is not None and (usual or draft == LAYER_SKIP) else None


def _load_draft(folder: Path, provider: str | None, threads: int | None, verify: Verify) -> Decoder:
    found = load(folder, provider=provider, threads=threads, verify=verify)
    if not isinstance(found, Decoder):
        raise RequestError(f"{folder} is an encoder ({found.manifest.task}) and cannot draft tokens.")
    return found
