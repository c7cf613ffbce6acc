"""How an encoder artifact turns texts into vectors or labels, as sentence-transformers' files say."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnxforge.runtimes.artifact import Manifest
from onnxforge.runtimes.errors import ArtifactError
from onnxforge.runtimes.strict_json import read_json_list, read_optional_json

Pooling = Literal["mean", "cls", "max", "lasttoken"]
Activation = Literal["none", "sigmoid", "softmax"]

_FLAGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}
_NAMES: dict[object, Pooling] = {name: name for name in _FLAGS.values()}
_ACTIVATIONS: dict[str, Activation] = {"none": "none", "sigmoid": "sigmoid", "softmax": "softmax"}
_DEFAULT_LABELS = 2
"""What a config.json without labels means: transformers leaves id2label out for two."""


@dataclass(frozen=True)
class EncoderSettings:
    """Facts from the side files of an encoder."""

    max_length: int
    """Tokens per text, special tokens included; longer texts are cut."""
    pooling: Pooling
    normalize: bool
    """The embedding pipeline ends in L2 normalisation."""
    lower_case: bool
    labels: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    activation: Activation
    """What makes a classifier's logits scores: nothing for a regression."""


def read_encoder_settings(folder: Path, manifest: Manifest, config: Mapping[str, object]) -> EncoderSettings:
    """Read 1_Pooling, modules.json, sentence_bert_config.json and the labels of config.json.

    Raises ArtifactError when the pooling is one this runtime does not know.
    """
    sentence = read_optional_json(folder / "sentence_bert_config.json")
    limit = sentence.get("max_seq_length")
    if not isinstance(limit, int):
        limit = read_optional_json(folder / "tokenizer_config.json").get("model_max_length")
    limit = (
        min(limit, manifest.context_length)
        if isinstance(limit, int) and limit > 0
        else manifest.context_length
    )
    labels = _labels(config)
    return EncoderSettings(
        max_length=limit,
        pooling=_pooling(folder / "1_Pooling" / "config.json"),
        normalize=any("Normalize" in kind for kind in _modules(folder / "modules.json")),
        lower_case=sentence.get("do_lower_case") is True,
        labels=labels,
        activation=_activation(config),
    )


def _pooling(path: Path) -> Pooling:
    if not path.exists():
        return "mean"
    raw = read_optional_json(path)
    chosen = [mode for flag, mode in _FLAGS.items() if raw.get(flag) is True]
    named = raw.get("pooling_mode")
    if isinstance(named, str):
        chosen = [_NAMES[named]] if named in _NAMES else []
    if len(chosen) != 1:
        on = sorted(key for key, value in raw.items() if value is True)
        raise ArtifactError(
            f"{path}: pooling {named or on} is not supported; choose one of {', '.join(_FLAGS.values())}."
        )
    return chosen[0]


def _modules(path: Path) -> list[str]:
    items = read_json_list(path) if path.exists() else []
    return [str(item.get("type")) for item in items if isinstance(item, dict)]


def _activation(config: Mapping[str, object]) -> Activation:
    """The tests of transformers' text-classification pipeline, in its order."""
    kind, named, count = config.get("problem_type"), config.get("id2label"), config.get("num_labels")
    if isinstance(named, dict):
        count = len(named)
    elif not isinstance(count, int):
        count = _DEFAULT_LABELS
    if kind == "regression":
        return "none"
    if kind == "multi_label_classification" or count == 1:
        return "sigmoid"
    if kind == "single_label_classification" or count > 1:
        return "softmax"
    return _ACTIVATIONS.get(str(config.get("function_to_apply")), "none")


def _labels(config: Mapping[str, object]) -> tuple[str, ...]:
    raw = config.get("id2label")
    if not isinstance(raw, dict):
        return ()
    try:
        ordered = sorted(raw.items(), key=lambda item: int(item[0]))
    except ValueError as error:
        raise ArtifactError(
            f"config.json: id2label needs whole numbers as keys, found {list(raw)[:5]}."
        ) from error
    return tuple(str(name) for _, name in ordered)
