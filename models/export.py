"""From a source to an ONNX graph: traced without weights, grown to full depth, bound lazily."""

from typing import TYPE_CHECKING

import onnx_ir as ir

from onnxforge.models import attention_form
from onnxforge.models.bind import bind, tied_weights_differ
from onnxforge.models.config_class import build_config, context_length, model_class
from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.families import Family, family_for
from onnxforge.models.skeleton import Skeleton, build_skeleton
from onnxforge.models.source import Source, SourceKind
from onnxforge.models.stamp import stamp
from onnxforge.models.tasks import AUTO, Task, parse_task, task_for
from onnxforge.models.tidy import finish, tidy
from onnxforge.models.trace import quiet, trace

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

IR_VERSION = 11
"""The lowest ONNX IR version that allows opset 23."""


def export_model(source: Source, task: str | None = None) -> ir.Model:
    """The opset-23 graph of ``source`` for ``task`` (an optimum task name; default: what the files imply).

    Decoders take ``input_ids``, ``attention_mask``, ``position_ids`` and ``past_key_values.{i}.key/value``
    and give ``logits`` and ``present.{i}.key/value``; encoders take ``input_ids``, ``attention_mask`` (and
    ``token_type_ids``) and give ``last_hidden_state`` or ``logits``. All weights are lazy float32
    initializers under their Hugging Face names. An ``.onnx`` source is loaded as it is.

    Raises:
        UnsupportedModel: the architecture or the task cannot be exported; the message names what is missing.
        SourceError: the configuration or the weights are wrong; the message lists every mismatch.
    """
    if task == AUTO:
        task = None
    if source.kind is SourceKind.ONNX:
        return _existing_graph(source, task)
    family = family_for(source.config.get("model_type"), source.ref)
    wanted = parse_task(task if task is not None else task_for(source))
    skeleton, context = _skeleton(source, family, wanted)
    model = trace(skeleton, family)
    with quiet():
        tidy(model, skeleton)
    stamp(model, skeleton)
    bind(model.graph, source.weights, skeleton, source.ref)
    finish(model)
    _describe(model, source, family, wanted, context)
    return model


def _existing_graph(source: Source, task: str | None) -> ir.Model:
    from onnxforge.models.onnx_contract import load_graph

    if source.graph is None:
        raise ValueError(f"{source.ref}: a source of kind {source.kind.value!r} needs the path of its graph")
    model = load_graph(source.graph, source.config)
    found = model.metadata_props["onnxforge.task"]
    if task is not None and str(parse_task(task)) != found:
        raise UnsupportedModel(
            f"{source.ref}: the graph is a {found} model, as its inputs, outputs and config.json say, and "
            f"cannot become one for {task}. Leave `--task` out, or export the model again for that task."
        )
    return model


def _skeleton(source: Source, family: Family, task: Task) -> tuple[Skeleton, int]:
    """The skeleton, with weights tied only where the checkpoint agrees; and the context length in tokens."""
    attention_form.register()
    config = build_config(source.config, family, source.ref)
    context = context_length(config, family)
    wanted_class = model_class(family, task, source.ref)
    if config.num_hidden_layers > max(len(source.weights), 1):
        raise SourceError(
            f"{source.ref}: config.json asks for {config.num_hidden_layers} layers, and the weight files "
            f"hold {len(source.weights)} tensors in all. Check that they belong together."
        )
    pooled = task is not Task.FEATURE_EXTRACTION
    skeleton = _built(wanted_class, config, family, source.ref, pooled=pooled)
    if tied_weights_differ(source.weights, skeleton):
        untied = build_config(dict(source.config) | {"tie_word_embeddings": False}, family, source.ref)
        skeleton = _built(wanted_class, untied, family, source.ref, pooled=pooled)
    return skeleton, context


def _built(
    wanted: "type[PreTrainedModel]", config: "PretrainedConfig", family: Family, ref: str, *, pooled: bool
) -> Skeleton:
    try:
        return build_skeleton(wanted, config, family, pooled=pooled)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # The modelling code reads the configuration unchecked: what it stumbles over is a value in the file.
        raise SourceError(
            f"{ref}: config.json describes no valid {wanted.__name__}: {type(error).__name__}: {error}"
        ) from error


def _describe(model: ir.Model, source: Source, family: Family, task: Task, context: int) -> None:
    model.ir_version = IR_VERSION
    model.producer_name = "onnxforge"
    model.producer_version = None
    model.graph.name = family.model_type
    model.metadata_props.update(
        {
            "onnxforge.task": task.value,
            "onnxforge.model_type": family.model_type,
            "onnxforge.context_length": str(context),
            "onnxforge.source": source.ref,
        }
    )
