"""The architectures that export, as data: one record per ``model_type`` with only what differs.

A new family is a new record here and a row in ``tests/conftest.py``; the exporter has no branch on
the name of a model. Which layers of a model are alike is not written down: it is read off the built modules
(:mod:`onnxforge.models.skeleton`).
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.tasks import Task


@dataclass(frozen=True)
class Family:
    """What the exporter must know of an architecture and cannot read from its configuration."""

    model_type: str
    """``model_type`` of ``config.json``."""
    module: str
    """Folder under ``transformers.models`` that holds the configuration and modelling files."""
    config: str
    """Name of the configuration class."""
    classes: Mapping[Task, str]
    """Name of the model class for each task."""
    layers: str = "layers"
    """Where the repeated layers are, below the base model (``encoder.layer``)."""
    token_types: bool = False
    """Whether ``token_type_ids`` is an input."""
    positions_after_pad: bool = False
    """Positions start at ``pad_token_id + 1`` (RoBERTa), so that many rows of the table are never used."""
    pretraining: Task = Task.FEATURE_EXTRACTION
    """What a ``...ForPreTraining`` checkpoint is good for: BERT's guesses masked words, not ELECTRA's."""

    @property
    def is_decoder(self) -> bool:
        """Whether the family generates text with a key/value cache."""
        return Task.TEXT_GENERATION in self.classes


def _decoder(
    model_type: str,
    stem: str,
    *,
    module: str = "",
    config: str = "",
    head: str = "ForCausalLM",
    layers: str = "layers",
) -> Family:
    return Family(
        model_type=model_type,
        module=module or model_type,
        config=config or f"{stem}Config",
        classes=MappingProxyType({Task.TEXT_GENERATION: f"{stem}{head}"}),
        layers=layers,
    )


def _encoder(
    model_type: str,
    stem: str,
    *,
    layers: str = "encoder.layer",
    token_types: bool = False,
    positions_after_pad: bool = False,
    pretraining: Task = Task.FEATURE_EXTRACTION,
) -> Family:
    return Family(
        model_type=model_type,
        module=model_type.replace("-", "_"),
        config=f"{stem}Config",
        classes=MappingProxyType(
            {
                Task.FEATURE_EXTRACTION: f"{stem}Model",
                Task.TEXT_CLASSIFICATION: f"{stem}ForSequenceClassification",
                Task.TOKEN_CLASSIFICATION: f"{stem}ForTokenClassification",
                Task.FILL_MASK: f"{stem}ForMaskedLM",
            }
        ),
        layers=layers,
        token_types=token_types,
        positions_after_pad=positions_after_pad,
        pretraining=pretraining,
    )


_ALL = (
    _decoder("cohere", "Cohere"),
    _decoder("exaone4", "Exaone4"),
    _decoder("gemma", "Gemma"),
    _decoder("gemma2", "Gemma2"),
    _decoder("gemma3_text", "Gemma3", module="gemma3", config="Gemma3TextConfig"),
    _decoder("gpt2", "GPT2", head="LMHeadModel", layers="h"),
    _decoder("gpt_neox", "GPTNeoX"),
    _decoder("granite", "Granite"),
    _decoder("llama", "Llama"),
    _decoder("mistral", "Mistral"),
    _decoder("olmo2", "Olmo2"),
    _decoder("opt", "OPT", layers="decoder.layers"),
    _decoder("phi", "Phi"),
    _decoder("phi3", "Phi3"),
    _decoder("qwen2", "Qwen2"),
    _decoder("qwen3", "Qwen3"),
    _decoder("smollm3", "SmolLM3"),
    _decoder("stablelm", "StableLm"),
    _decoder("starcoder2", "Starcoder2"),
    _encoder("bert", "Bert", token_types=True, pretraining=Task.FILL_MASK),
    _encoder("distilbert", "DistilBert", layers="transformer.layer"),
    _encoder("electra", "Electra", token_types=True),
    _encoder("modernbert", "ModernBert", layers="layers"),
    _encoder("mpnet", "MPNet", positions_after_pad=True),
    _encoder("roberta", "Roberta", positions_after_pad=True),
    _encoder("xlm-roberta", "XLMRoberta", positions_after_pad=True),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({family.model_type: family for family in _ALL})
"""Every architecture that exports, by ``model_type``."""


def family_for(model_type: object, ref: str) -> Family:
    """The record of ``model_type``, for the model the user called ``ref``.

    Raises:
        UnsupportedModel: there is none; the message lists the near names and all names.
    """
    if isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    if not isinstance(model_type, str) or not model_type:
        raise UnsupportedModel(
            f"{ref}: config.json has no model_type, so the architecture is unknown. "
            f"Set it to one of: {', '.join(FAMILIES)}."
        )
    near = difflib.get_close_matches(model_type, FAMILIES, n=3, cutoff=0.5)
    hint = f" Nearest: {', '.join(near)}." if near else ""
    raise UnsupportedModel(
        f"{ref}: no exporter for the architecture {model_type!r}: it has no record in models/families.py."
        f"{hint} Supported: {', '.join(FAMILIES)}. An .onnx file of the model, made elsewhere, compiles."
    )
