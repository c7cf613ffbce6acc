"""From a stranger's ``config.json`` to a transformers configuration and model class.

The class comes from our own table, never from the file: ``auto_map`` (remote code) and the keys that make
transformers fetch kernels are dropped before the file is looked at.
"""

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxforge.models import attention_form
from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.families import Family
from onnxforge.models.source import Json
from onnxforge.models.tasks import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_DROPPED = frozenset(
    {
        "auto_map",
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation_internal",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "gradient_checkpointing",
        "output_attentions",
        "output_hidden_states",
        "use_return_dict",
        "return_dict",
        "torchscript",
        "is_decoder",
        "add_cross_attention",
        "is_encoder_decoder",
    }
)
"""Keys that select code, precision or outputs. The exporter decides those."""

_STATIC_ROPE = frozenset({"default", "linear", "llama3", "yarn", "proportional"})
"""Rotary tables that do not depend on the length of the prompt."""

_LARGEST = 2**25
"""Far above any real size; without a bound, a hostile file could ask for terabytes of position ids."""

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")


def build_config(config: Mapping[str, Json], family: Family, ref: str) -> "PretrainedConfig":
    """The configuration object of ``family`` for the contents of ``config.json``.

    Raises:
        SourceError: a value has the wrong type or is not possible; the message is transformers' own.
        UnsupportedModel: the weights are stored quantized by another tool, or the rotary table depends on
            the length of the prompt.
    """
    if config.get("quantization_config") is not None:
        raise UnsupportedModel(
            f"{ref}: config.json has a quantization_config, so the weights are packed by another tool. "
            "Give the full-precision model, or a GGUF file of it."
        )
    module = importlib.import_module(f"transformers.models.{family.module}.configuration_{family.module}")
    kept = {key: value for key, value in config.items() if key not in _DROPPED}
    try:
        built: PretrainedConfig = getattr(module, family.config).from_dict(kept)
    except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError) as error:
        raise SourceError(f"{ref}: config.json is not a valid {family.config}: {error}") from error
    except Exception as error:
        # transformers validates with a private exception of huggingface_hub that derives from Exception only.
        if "StrictDataclass" not in type(error).__name__:
            raise
        raise SourceError(f"{ref}: config.json is not a valid {family.config}: {error}") from error
    _check_sizes(built, ref)
    _check_rope(built, ref)
    built._attn_implementation = attention_form.NAME
    return built


def model_class(family: Family, task: Task, ref: str) -> "type[PreTrainedModel]":
    """The transformers class that computes ``task`` for ``family``.

    Raises:
        UnsupportedModel: the family has no class for the task.
    """
    if task not in family.classes:
        raise UnsupportedModel(
            f"{ref}: {family.model_type} has no exporter for the task {task.value!r}. "
            f"It has: {', '.join(family.classes)}."
        )
    module = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    found: type[PreTrainedModel] = getattr(module, family.classes[task])
    return found


def context_length(config: "PretrainedConfig", family: Family) -> int:
    """How many tokens the model can attend to, in tokens."""
    positions = int(config.max_position_embeddings)
    return positions - (config.pad_token_id or 0) - 1 if family.positions_after_pad else positions


def _check_sizes(config: "PretrainedConfig", ref: str) -> None:
    wrong = []
    for name in _SIZES:
        value = getattr(config, name, None)
        if not isinstance(value, int) or not 1 <= value <= _LARGEST:
            wrong.append(f"{name} is {value!r}")
    if wrong:
        raise SourceError(
            f"{ref}: config.json: {'; '.join(wrong)}. Each must be a whole number from 1 to {_LARGEST}."
        )


def _check_rope(config: "PretrainedConfig", ref: str) -> None:
    parameters = getattr(config, "rope_parameters", None) or {}
    tables = parameters.values() if "rope_type" not in parameters else (parameters,)
    for table in tables:
        rope_type = table.get("rope_type", "default") if isinstance(table, dict) else "default"
        if rope_type not in _STATIC_ROPE:
            raise UnsupportedModel(
                f"{ref}: rope_type {rope_type!r} changes its frequencies with the length of the prompt, and "
                f"a graph holds one table. Exported: {', '.join(sorted(_STATIC_ROPE))}. Remove the scaling "
                "from config.json to export the model for its original context."
            )
