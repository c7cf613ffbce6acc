"""Calibration data from a data set on a Hugging Face hub: some files of one split, fetched into its cache.

``huggingface_hub`` does the transport and honours ``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and
``HF_HUB_OFFLINE``. Calibration looks at thousands of tokens, not at billions: the first files are enough.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from onnxforge.compiler.errors import RequestRefused

_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?"
    r"(?::(?P<split>[\w./-]*))?(?::(?P<column>[^:]+))?"
)
_KINDS = ((".jsonl", ".ndjson", ".json", ".jsonl.gz", ".json.gz"), (".csv",), (".txt",), (".parquet",))
"""What can be read, the first choice first: Parquet needs a package that may not be here."""
_DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")
_ENOUGH = 8 << 20
"""Bytes after which no further file is fetched."""
_MOST_FILES = 64


@dataclass(frozen=True)
class DatasetName:
    """``org/name@revision:split:column``; all but the name may be missing."""

    repository: str
    revision: str | None = None
    split: str = "train"
    """``train``, or a folder and a split: ``wikitext-2-raw-v1/test``."""
    column: str | None = None


def dataset_name(text: str) -> DatasetName | None:
    """What ``text`` names, if it has the form of a data set's name."""
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return DatasetName(found["name"], found["revision"], found["split"] or "train", found["column"])


def fetch_split(name: DatasetName) -> tuple[str, tuple[Path, ...]]:
    """The commit, and the first files of the split.

    Raises:
        RequestRefused: no such data set, revision or split; gated; not cached and offline; no file that can
            be read here; or files in several folders, of which one must be named.
    """
    import huggingface_hub

    with _refusals(name):
        commit, files = _listed(name)
    paths: list[Path] = []
    for file in _of_split(name, files)[:_MOST_FILES]:
        with _refusals(name):
            fetched = huggingface_hub.hf_hub_download(
                name.repository, file, repo_type="dataset", revision=name.revision
            )  # by its name, not by the commit: so that the cache knows the name when offline
        paths.append(Path(fetched))
        if sum(path.stat().st_size for path in paths) >= _ENOUGH:
            break
    return commit, tuple(paths)


def _listed(name: DatasetName) -> tuple[str, list[str]]:
    """The commit and its files; of a cached one those in the cache, when the hub may not be asked."""
    import huggingface_hub
    from huggingface_hub import constants

    if constants.is_offline_mode():
        folder = Path(
            huggingface_hub.snapshot_download(
                name.repository, repo_type="dataset", revision=name.revision, local_files_only=True
            )
        )
        return folder.name, sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    found = huggingface_hub.HfApi().dataset_info(name.repository, revision=name.revision)
    return found.sha or name.revision or "main", sorted(file.rfilename for file in found.siblings or ())


def _of_split(name: DatasetName, files: Sequence[str]) -> list[str]:
    """The files of the split, all of one kind and in one folder."""
    what = f"The data set {name.repository}"
    data = [file for file in files if _kind(file) is not None]
    if not data:
        raise RequestRefused(
            f"{what} has no file that can be read here (JSON Lines, CSV, plain text, Parquet); it has: "
            f"{', '.join(files[:8]) or 'none'}. Download it and write the samples to a .jsonl."
        )
    chosen = [file for file in data if _is_of(file, name.split)]
    if not chosen and name.split == "train" and not any(_is_of(file, s) for file in data for s in _SPLITS):
        chosen = data
    if not chosen:
        raise RequestRefused(
            f"{what} has no file of the split `{name.split}`; it has: {', '.join(data[:8])}. "
            f"Name one that is in them, as in `{name.repository}:{_SPLITS[-1]}`."
        )
    kind = min(kind for file in chosen if (kind := _kind(file)) is not None)
    chosen = [file for file in chosen if _kind(file) == kind]
    folders = sorted({str(PurePosixPath(file).parent) for file in chosen})
    if len(folders) > 1:
        raise RequestRefused(
            f"{what} has files of the split `{name.split}` in several folders: {', '.join(folders[:8])}. "
            f"Name one: `{name.repository}:{folders[0]}/{name.split}`."
        )
    return chosen


def _kind(file: str) -> int | None:
    """The place of the file's kind in _KINDS; None for what holds no data."""
    path = PurePosixPath(file)
    if path.name in _DESCRIPTIONS or path.name.startswith("."):
        return None
    return next((place for place, kind in enumerate(_KINDS) if path.name.endswith(kind)), None)


def _is_of(file: str, split: str) -> bool:
    """Whether the file's path names the split: ``data/train-00000-of-00001.csv``, ``train/a.jsonl``."""
    folder, _, word = split.rpartition("/")
    inside = file.startswith(f"{folder}/") if folder else True
    rest = file[len(folder) :]
    return inside and re.search(rf"(?<![a-z]){re.escape(word.lower())}(?![a-z])", rest.lower()) is not None


@contextmanager
def _refusals(name: DatasetName) -> Iterator[None]:
    """The hub client's errors in one paragraph each."""
    from huggingface_hub import constants, errors

    what = f"the data set {name.repository}" + (f"@{name.revision}" if name.revision else "")
    hub = str(constants.ENDPOINT)
    try:
        yield
    except errors.GatedRepoError as error:
        raise RequestRefused(
            f"Calibration: {what} is gated on {hub}. Accept its terms there with your account, then set "
            "HF_TOKEN to a token of that account."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise RequestRefused(f"Calibration: {what} has no such revision on {hub}.") from error
    except errors.RepositoryNotFoundError as error:
        raise RequestRefused(
            f"Calibration: {what} is not on {hub}, or is private, and no file is called {name.repository!r}. "
            "Check the spelling; for a private data set set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise RequestRefused(
            f"Calibration: {what} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE (or the "
            f"network) keeps it from being fetched from {hub}. Name a file instead, or go online once."
        ) from error
    except Exception as error:  # the client passes on the errors of whichever HTTP library it uses
        raise RequestRefused(
            f"Calibration: {what} could not be fetched from {hub}: {type(error).__name__}: {error}."
        ) from error
