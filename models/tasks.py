"""Tasks: optimum's names, and the task that a model's own files imply."""

from enum import StrEnum

from onnxforge.models.errors import UnsupportedModel
from onnxforge.models.source import Source


class Task(StrEnum):
    """What the exported graph is for. The values are optimum's task names."""

    TEXT_GENERATION = "text-generation-with-past"
    FEATURE_EXTRACTION = "feature-extraction"
    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    FILL_MASK = "fill-mask"


_CLASS_ENDINGS = (
    ("ForCausalLM", Task.TEXT_GENERATION),
    ("LMHeadModel", Task.TEXT_GENERATION),
    ("ForSequenceClassification", Task.TEXT_CLASSIFICATION),
    ("ForTokenClassification", Task.TOKEN_CLASSIFICATION),
    ("ForMaskedLM", Task.FILL_MASK),
    ("Model", Task.FEATURE_EXTRACTION),
)

_PRETRAINING = "ForPreTraining"
_WITH_PAST = "-with-past"


AUTO = "auto"
"""optimum's name for: the task that the model's own files imply."""


def parse_task(name: str) -> Task:
    """The task called ``name``: one of ours, or a synonym that optimum knows (``sequence-classification``).

    ``text-generation`` without its ``-with-past`` is the same graph: an empty cache is a cache.

    Raises:
        UnsupportedModel: no such task, or one that is not exported here.
    """
    canonical = name if name in set(Task) else _optimum_name(name)
    if canonical in set(Task):
        return Task(canonical)
    if canonical == Task.TEXT_GENERATION.removesuffix(_WITH_PAST):
        return Task.TEXT_GENERATION
    raise UnsupportedModel(f"task {name!r} is not exported. Supported: {', '.join(Task)}.")


def _optimum_name(name: str) -> str:
    from optimum.exporters.tasks import TasksManager

    stem = name.removesuffix(_WITH_PAST)
    suffix = _WITH_PAST if name.endswith(_WITH_PAST) else ""
    return f"{TasksManager.map_from_synonym(stem)}{suffix}"


def task_for(source: Source) -> str:
    """The task that the model's own files imply, as an optimum task name.

    A sentence-transformers model (it carries ``modules.json``) is for feature extraction whatever class its
    ``config.json`` names; otherwise ``architectures`` decides; without it, or for a checkpoint that carries
    its family's training objective, the family.

    Raises:
        UnsupportedModel: the class named in ``architectures`` belongs to no task that is exported.
    """
    from onnxforge.models.families import FAMILIES

    family = FAMILIES.get(str(source.config.get("model_type")))
    decoder = family is not None and family.is_decoder
    if "modules.json" in source.sidecars and not decoder:
        return Task.FEATURE_EXTRACTION
    architectures = source.config.get("architectures")
    if isinstance(architectures, list) and architectures:
        name = str(architectures[0])
        if family is not None and name.endswith(_PRETRAINING):
            return family.pretraining
        task = next((task for ending, task in _CLASS_ENDINGS if name.endswith(ending)), None)
        if task is None:
            raise UnsupportedModel(
                f"{source.ref}: architectures names {name!r}, which fits none of the tasks "
                f"{', '.join(Task)}. Name one with --task."
            )
        return task
    return Task.TEXT_GENERATION if decoder else Task.FEATURE_EXTRACTION
