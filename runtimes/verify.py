"""Is this folder the artifact that was written? Sizes, sha256, no file too many, no links."""

import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path

from onnxforge.runtimes.artifact import MANIFEST, FileRecord, read_manifest
from onnxforge.runtimes.errors import ArtifactError

SMALL = 16 * 1024 * 1024
"""Files up to this many bytes are hashed at every load; larger ones once per change."""
_BLOCK = 1024 * 1024
_MAX_REMEMBERED = 512


def verify_files(folder: Path, full: bool = False) -> None:
    """Check every file of the artifact against its manifest.

    A large file whose device, inode, size and times equal those of an earlier successful check is taken as
    unchanged, unless `full`. Raises ArtifactError that names every file found wrong, not only the first.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    present, problems = _walk(folder)
    expected = {record.path: record for record in manifest.files}
    problems += [f"{path}: missing" for path in sorted(expected.keys() - present)]
    problems += [
        f"{path}: not part of the artifact" for path in sorted(present - expected.keys() - {MANIFEST})
    ]
    remembered = _load_remembered()
    fresh: dict[str, str] = {}
    for path in sorted(expected.keys() & present):
        problem = _check(folder / path, expected[path], {} if full else remembered, fresh)
        if problem:
            problems.append(f"{path}: {problem}")
    if problems:
        raise ArtifactError(
            f"{folder} is not the artifact that was written: "
            + "; ".join(sorted(problems))
            + ". Compile it again."
        )
    if fresh:
        _save_remembered({**remembered, **fresh})


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _walk(folder: Path) -> tuple[set[str], list[str]]:
    """Plain files below the folder, and a complaint for each link or special file."""
    found: set[str] = set()
    problems: list[str] = []
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            relative = Path(entry.path).relative_to(folder).as_posix()
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append(Path(entry.path))
                continue
            found.add(relative)
            if stat.S_ISLNK(status.st_mode):
                problems.append(f"{relative}: a symbolic link; artifacts hold plain files")
            elif not stat.S_ISREG(status.st_mode):
                problems.append(f"{relative}: not a plain file")
            elif status.st_nlink != 1:
                problems.append(
                    f"{relative}: a hard link ({status.st_nlink} names); copy the artifact instead"
                )
    return found, problems


def _check(path: Path, record: FileRecord, remembered: dict[str, str], fresh: dict[str, str]) -> str | None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return None  # already reported by the walk
    if status.st_size != record.size:
        return f"{status.st_size} bytes, {record.size} expected"
    key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
    large = record.size > SMALL
    if large and remembered.get(key) == record.sha256:
        return None
    if sha256_of(path) != record.sha256:
        return "changed, its sha256 differs"
    if large:
        fresh[key] = record.sha256
    return None


def _cache_file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "onnxforge" / "verified.json"


def _load_remembered() -> dict[str, str]:
    """The cache only saves time: when it is absent or damaged, everything is hashed again."""
    try:
        raw = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {str(key): value for key, value in raw.items() if isinstance(value, str)}


def _save_remembered(entries: dict[str, str]) -> None:
    newest = dict(list(entries.items())[-_MAX_REMEMBERED:])
    try:
        target = _cache_file()
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(newest, stream)
        Path(name).replace(target)
    except (OSError, RuntimeError):
        return  # a read-only home costs a second hashing, nothing else
