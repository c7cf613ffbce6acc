"""The small files that travel with a model: tokenizer, generation defaults, sentence-transformers modules."""

import json
from pathlib import Path

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.files import JSON_LIMIT, TOKENIZER_LIMIT, contained, parse_object, read_plain
from onnxforge.models.source import Json

SIDECARS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "chat_template.jinja",
    "generation_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
)
"""Files beside the weights, by name; the folders of sentence-transformers modules come on top."""
MODULE_CONFIGS = "[0-9]*_*/config.json"
"""Those folders' configurations, as a pattern: ``1_Pooling/config.json``."""
_DROPPED = ("auto_map", "trust_remote_code", "custom_ops_library", "custom_pipelines")
"""Keys that make some loader run code from the model's repository."""
_DROPPED_PREFIX = "_attn_implementation"
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


def sidecar_files(folder: Path, problems: list[str]) -> dict[str, bytes]:
    """Every known side file of ``folder`` by relative path; unreadable ones are added to ``problems``.

    Files are passed on byte for byte, with two exceptions: keys that name code are dropped from JSON
    objects, and a chat template that stands only in ``tokenizer_config.json`` is also given as
    ``chat_template.jinja``.

    Raises:
        UnsupportedModel: ``modules.json`` names a sentence-transformers module beyond pooling and
            normalisation, without which the embeddings would be wrong.
    """
    files: dict[str, bytes] = {}
    names = [
        *SIDECARS,
        *(path.relative_to(folder).as_posix() for path in sorted(folder.glob(MODULE_CONFIGS))),
    ]
    for name in names:
        if not (folder / name).exists() and not (folder / name).is_symlink():
            continue
        try:
            limit = TOKENIZER_LIMIT if name in ("tokenizer.json", "vocab.txt") else JSON_LIMIT
            files[name] = _harmless(name, read_plain(contained(folder, name), limit), str(folder / name))
        except SourceError as error:
            problems.append(str(error))
    if "modules.json" in files:
        _check_modules(files["modules.json"], folder)
    if "chat_template.jinja" not in files and "tokenizer_config.json" in files:
        template = parse_object(files["tokenizer_config.json"], "tokenizer_config.json").get("chat_template")
        if isinstance(template, str):
            files["chat_template.jinja"] = template.encode()
    return files


def without_code(config: dict[str, Json]) -> dict[str, Json]:
    """The same JSON object without the keys that make some loader run code."""
    return {
        key: value
        for key, value in config.items()
        if key not in _DROPPED and not key.startswith(_DROPPED_PREFIX)
    }


def _harmless(name: str, data: bytes, where: str) -> bytes:
    if not name.endswith(".json") or name == "modules.json":
        return data
    value = parse_object(data, where)
    kept = without_code(value)
    return data if kept == value else (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()


def _check_modules(data: bytes, folder: Path) -> None:
    try:
        modules = json.loads(data)
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(
            f"{folder / 'modules.json'} is not a list of modules: {error!r}. Fetch it again."
        ) from error
    strange = [kind for kind in kinds if kind not in _KNOWN_MODULES]
    if strange:
        raise UnsupportedModel(
            f"{folder}: modules.json asks for {', '.join(strange)} after the transformer; only "
            f"{', '.join(_KNOWN_MODULES)} are known. To compile the bare transformer, remove modules.json."
        )
