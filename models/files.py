"""Opening files that somebody else wrote: plain files only, links only where the hub cache puts them.

A folder of weights is a stranger's until proven otherwise. A FIFO in it would hang the reader, a link would
carry another file of this machine into the artifact. So every file is opened with ``O_NOFOLLOW |
O_NONBLOCK``, must be a regular file, and a link is followed only when it stays inside the folder, or lands
in the ``blobs`` folder of the hub cache that the folder belongs to.
"""

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

from onnxforge.models.errors import SourceError
from onnxforge.models.source import Json

JSON_LIMIT = 8 * 2**20
"""Largest configuration file, in bytes."""
TOKENIZER_LIMIT = 256 * 2**20
"""Largest tokenizer file, in bytes; multilingual vocabularies reach 35 MB."""
_CHUNK = 4 * 2**20


def contained(folder: Path, name: str) -> Path:
    """The real path of ``folder/name``, links resolved.

    Raises:
        SourceError: ``name`` leaves the folder, or is a link to somewhere that is neither inside the folder
            nor in its hub cache.
    """
    root = folder.resolve()
    target = (folder / name).resolve()
    snapshots = [place.parent for place in (root, *root.parents) if place.parent.name == "snapshots"]
    allowed = [root, *(place.parent / "blobs" for place in snapshots[:1])]
    if any(target.is_relative_to(place) for place in allowed):
        return target
    raise SourceError(
        f"{folder / name} leads outside the model folder, to {target}. Copy the file into the folder: links "
        "are followed only within it or within the hub cache it belongs to."
    )


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading; never follows a link at the last component, never blocks.

    Raises:
        SourceError: missing, unreadable, a link, a folder, a FIFO or a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(
            f"{path} cannot be opened: {reason}. Check the path and its permissions."
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is not a regular file. A model is made of plain files.")
    return os.fdopen(descriptor, "rb")


def read_plain(path: Path, limit: int) -> bytes:
    """The whole content of a small regular file.

    Raises:
        SourceError: as :func:`open_plain`, or the file is larger than ``limit`` bytes.
    """
    with open_plain(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise SourceError(f"{path} is larger than {limit:,} bytes, too large for what it claims to be.")
    return data


def sha256(path: Path) -> str:
    """sha256 in hex of a regular file, read in chunks."""
    digest = hashlib.sha256()
    with open_plain(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def parse_object(data: bytes, where: str) -> dict[str, Json]:
    """Parse a JSON object strictly: UTF-8, no key twice, nesting the parser can bear.

    Raises:
        SourceError: not JSON, not an object, or a key stands twice (two readers would disagree about it).
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{where} is not valid JSON: {error}. Fetch the file again.") from error
    if not isinstance(value, dict):
        raise SourceError(f"{where} holds a JSON {type(value).__name__}; an object was needed.")
    return value


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"repeated keys {repeated}")
    return result
