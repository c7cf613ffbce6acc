"""Where models come from: sources, families, export, lazy weights."""

from onnxforge.models.errors import SourceError, UnsupportedModel
from onnxforge.models.export import export_model
from onnxforge.models.open import open_model
from onnxforge.models.source import Source, SourceKind
from onnxforge.models.tasks import Task, task_for

__all__ = [
    "Source",
    "SourceError",
    "SourceKind",
    "Task",
    "UnsupportedModel",
    "export_model",
    "open_model",
    "task_for",
]
