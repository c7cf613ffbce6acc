"""Refusing calibration data that cannot serve, before anything is exported."""

from onnxforge.compiler import steps
from onnxforge.compiler.calibration_records import RecordFiles
from onnxforge.compiler.calibration_source import SELF, open_corpus
from onnxforge.compiler.calibration_tokens import RecordTokens
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.targets import Target
from onnxforge.models.source import Source, SourceKind
from onnxforge.models.tasks import AUTO, Task, parse_task, task_for


def check_calibration(target: Target, source: Source, task: str | None) -> None:
    """Read the named data through once, and hold it against the model.

    Raises:
        RequestRefused: no step of ``target`` calibrates; the data is missing, empty or malformed; or it does
            not suit ``source`` compiled for ``task`` (None: the one that it implies).
    """
    if target.calibration is None:
        return
    names = [text.partition("{")[0] for text in target.passes]
    calibrated = steps.calibrated_steps()
    if not any(name in calibrated for name in names):
        raise RequestRefused(
            f"Calibration data is named ({target.calibration}), and no step of target `{target.name}` looks "
            f"at any: these do: {', '.join(calibrated)}. Leave --calibration out, or add one of them."
        )
    if target.calibration == SELF and not _writes_text(source, task):
        raise RequestRefused(
            f"--calibration {SELF} needs a model that writes text, and {source.ref} does not: name a file or "
            "a data set, or leave the option out."
        )
    corpus = open_corpus(target.calibration)
    if isinstance(corpus, RecordFiles):
        first = None
        for record in corpus:  # reading a record checks it
            first = first or record
        if first is None:
            raise RequestRefused(
                f"{corpus.name} holds no record with anything in it: calibration has nothing."
            )
        RecordTokens(source, whole=False).of(first, longest=16)


def _writes_text(source: Source, task: str | None) -> bool:
    """As far as files tell: what a finished graph is for shows in the graph, when `calibrate` runs."""
    if source.kind is SourceKind.ONNX:
        return True
    wanted = task_for(source) if task is None or task == AUTO else parse_task(task)
    return wanted == Task.TEXT_GENERATION
