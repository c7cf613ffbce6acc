"""Writing an artifact so that its place holds the whole old one, the whole new one, or nothing.

Everything is written to a staging folder beside the target, forced to disk, and swapped in with one rename.
The steps, and what is there if the process dies after each::

    lock, remove stale staging     old (or nothing)
    write files, manifest last     old (or nothing)
    fsync files and folders        old (or nothing)
    rename, or exchange            new; the old one now carries the staging name
    delete the old one             new
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onnxforge.compiler.errors import PublishRefused
from onnxforge.compiler.failpoints import failpoint
from onnxforge.runtimes.artifact import MANIFEST, read_manifest
from onnxforge.runtimes.errors import ArtifactError

_SHOWN = 5
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@contextmanager
def staging(output: Path) -> Iterator[Path]:
    """A fresh folder beside ``output``, under ``output``'s lock. What is left of it at the end is removed.

    Raises:
        PublishRefused: ``output`` is not ours to replace or not writable, or another compile holds it.
    """
    output = _place(output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _lock(output):
            _remove_stale(output)
            folder = output.parent / f".{output.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}"
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        if not _concerns(error, output):
            raise
        raise PublishRefused(_os_paragraph(error, output)) from error


def require_space(folder: Path, needed: int) -> None:
    """Refuse before the first byte is written when ``needed`` bytes cannot fit on ``folder``'s disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise PublishRefused(
            f"The artifact needs {needed / 1e6:,.1f} MB on the disk of {folder.parent}, and "
            f"{free / 1e6:,.1f} MB are free. Make room for {(needed - free) / 1e6:,.1f} MB more, "
            "or choose another disk with `-o`."
        )


def swap(folder: Path, output: Path) -> None:
    """Force the finished ``folder`` to disk and put it at ``output`` in one step; then delete the old one."""
    output = _place(output)  # again: the target may have appeared while we compiled
    _sync_tree(folder)
    failpoint("before-swap")
    if output.exists() and any(output.iterdir()):
        _exchange(folder, output)
    else:
        os.rename(folder, output)
    failpoint("after-swap")
    _sync(output.parent)
    shutil.rmtree(folder, ignore_errors=True)
    failpoint("after-delete")


def _place(output: Path) -> Path:
    """``output`` with every link followed, once it is sure that an artifact may be put there."""
    try:
        place = output.absolute().resolve()
        _refuse_foreign(place)
    except RuntimeError as error:  # what Python before 3.13 says of a link that leads to itself
        raise PublishRefused(_os_paragraph(OSError(errno.ELOOP, str(error)), output)) from error
    except OSError as error:
        raise PublishRefused(_os_paragraph(error, output)) from error
    return place


def _refuse_foreign(output: Path) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise PublishRefused(f"{output} is a file. An artifact is a folder: choose another name with `-o`.")
    files = (p for p in output.rglob("*") if p.is_symlink() or not p.is_dir())
    if (first := next(files, None)) is None:
        return
    try:
        listed = {MANIFEST, *(record.path for record in read_manifest(output).files)}
    except ArtifactError as error:
        raise PublishRefused(
            f"{output} exists and is not an artifact, so it will not be replaced: {error} "
            "Choose another folder with `-o`, or empty this one."
        ) from error
    present = {p.relative_to(output).as_posix() for p in (first, *files)}  # only now: it may be a whole home
    if strangers := sorted(present - listed):
        shown = ", ".join(strangers[:_SHOWN]) + (
            f" and {len(strangers) - _SHOWN} more" * (len(strangers) > _SHOWN)
        )
        raise PublishRefused(
            f"{output} is an artifact with files that no compile wrote: {shown}. Replacing it would delete "
            "them. Move them elsewhere, or choose another folder with `-o`."
        )


@contextmanager
def _lock(output: Path) -> Iterator[None]:
    """An exclusive lock on ``.NAME.lock`` beside the target, released by the kernel if this process dies."""
    path = output.parent / f".{output.name}.lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise PublishRefused(
                f"Another compile is writing to {output} right now. Wait for it, or choose another folder "
                "with `-o`."
            ) from error
        if _same_file(handle, path):
            break
        os.close(handle)  # its last owner removed the file between our open and our lock
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while still locked, so that no one can lock a file that is about to go
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_stale(output: Path) -> None:
    """Remove what dead compiles left. We hold the lock, so no living one owns any of it."""
    ours = re.compile(rf"\.{re.escape(output.name)}\.tmp-\d+-[0-9a-f]{{8}}")
    for entry in output.parent.iterdir():
        if ours.fullmatch(entry.name) and entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)


def _exchange(folder: Path, output: Path) -> None:
    """Swap two folders in one step where the kernel can; elsewhere by two renames, the old one kept aside."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        paths = (os.fsencode(folder), os.fsencode(output))
        if libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
            return
        if (code := ctypes.get_errno()) not in _NO_EXCHANGE:
            raise OSError(code, os.strerror(code), str(output))
    aside = folder.with_name(f".{output.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    os.rename(output, aside)
    try:
        os.rename(folder, output)
    except OSError:
        os.rename(aside, output)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    for directory, _, files in os.walk(folder):
        for name in files:
            _sync(Path(directory, name))
        _sync(Path(directory))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _concerns(error: OSError, output: Path) -> bool:
    """Whether ``error`` is about writing the artifact; reading the model can fail inside the block too."""
    if error.errno in _NO_ROOM:
        return True
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return False
    named = Path(os.fsdecode(error.filename))
    ours = output.parent / f".{output.name}."
    return named in (output, *output.parents) or str(named).startswith(str(ours))


def _os_paragraph(error: OSError, output: Path) -> str:
    where = error.filename or output
    match error.errno:
        case errno.EFBIG:
            reason, advice = (
                "a file grew over the size limit of this process (`ulimit -f`) or of the file system",
                "Raise the limit, or choose another disk",
            )
        case errno.ELOOP:
            reason, advice = "it is a symbolic link that leads to itself", "Remove it, or choose another name"
        case errno.ENOSPC | errno.EDQUOT:
            free = shutil.disk_usage(next(p for p in output.absolute().parents if p.exists())).free
            reason, advice = (
                f"the disk is full ({free / 1e6:,.1f} MB free)",
                "Make room, or choose another disk",
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            reason, advice = (
                f"{where} is not writable ({error.strerror})",
                "Choose a folder that you may write to",
            )
        case errno.ENAMETOOLONG:
            reason, advice = "its name is too long for this file system", "Choose a shorter one"
        case _:
            reason, advice = f"{where}: {error.strerror or error}", "Choose another folder"
    return (
        f"Cannot write the artifact to {output}: {reason}. What was there before is untouched. "
        f"{advice} with `-o`."
    )
