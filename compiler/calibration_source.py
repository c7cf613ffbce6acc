"""What a model is calibrated on, from the way a user names it: a file, a data set, or the model itself."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from onnxforge.compiler.calibration_hub import dataset_name, fetch_split
from onnxforge.compiler.calibration_records import SUFFIXES, RecordFiles
from onnxforge.compiler.errors import RequestRefused
from onnxforge.compiler.eval_text import EvaluationText, calibration_text

SELF = "self"
FORMS = "a .txt or .jsonl file, a data set org/name[:split[:column]], or `self`"
_TEXT_SUFFIXES = (".txt", ".md", ".rst")
LARGE = 16 << 20
"""Bytes of a text that is tokenized whole; of a larger one, blocks are drawn."""


@dataclass(frozen=True)
class SelfSampled:
    """Sequences that the model itself makes up: no data is needed."""

    name: str = "sampled from the model itself"


Corpus: TypeAlias = EvaluationText | RecordFiles | SelfSampled
"""Running text that is cut into windows, samples one by one, or none at all."""


def open_corpus(named: str | None) -> Corpus:
    """What ``named`` stands for; None is the half of Python's help topics that evaluation never sees.

    Data sets are fetched. Files of records are not read yet.

    Raises:
        RequestRefused: no such file or data set, an empty one, or one of a kind that cannot be read.
    """
    if named is None:
        return calibration_text()
    if named == SELF:
        return SelfSampled()
    path = Path(named).expanduser()
    if path.exists() or path.suffix in (*_TEXT_SUFFIXES, *SUFFIXES, ".gz") or named[:1] in (".", "/", "~"):
        return _files(path.name, (path,), None)
    name = dataset_name(named)
    if name is None:
        raise RequestRefused(f"`{named}` names no calibration data: give {FORMS}.")
    commit, paths = fetch_split(name)
    return _files(f"{name.repository}@{commit[:12]}, {name.split}", paths, name.column)


def _files(name: str, paths: tuple[Path, ...], column: str | None) -> Corpus:
    for path in paths:
        if not path.is_file():
            raise RequestRefused(f"There is no calibration file {path}. Give {FORMS}.")
    kinds = {path.suffix for path in paths}
    if kinds <= set(SUFFIXES) | {".gz"}:
        return RecordFiles(name, paths, column)
    if not kinds <= set(_TEXT_SUFFIXES) and b"\0" in paths[0].open("rb").read(4096):
        raise RequestRefused(f"{paths[0]} is no text. Give {FORMS}.")
    if sum(path.stat().st_size for path in paths) > LARGE:
        return RecordFiles(name, paths, None)
    return _text(name, paths)


def _text(name: str, paths: tuple[Path, ...]) -> EvaluationText:
    texts = []
    for path in paths:
        try:
            texts.append(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            raise RequestRefused(f"The calibration file {path} cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError as error:
            raise RequestRefused(f"{path} is not UTF-8 (byte {error.start}). Convert it first.") from None
    text = "\n".join(texts)
    if not text.strip():
        raise RequestRefused(f"{name} is empty: there is nothing to calibrate on.")
    return EvaluationText(name, text)
