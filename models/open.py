"""From what the user wrote to a :class:`~onnxforge.models.source.Source`."""

import difflib
import re
from pathlib import Path

from onnxforge.models.demo import DEMOS, locate_demo
from onnxforge.models.errors import SourceError
from onnxforge.models.gguf_source import open_gguf
from onnxforge.models.hf_folder import NO_PICKLES, PICKLES, open_folder
from onnxforge.models.hub import NotOnHub, fetch_snapshot
from onnxforge.models.onnx_source import open_onnx
from onnxforge.models.source import Source

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BARE_NAME = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9](?:[\w.-]{0,94}\w)?", re.ASCII)
"""The id of a model without an organisation (``gpt2``): what huggingface_hub takes for one."""
_FORMS = (
    "a Hugging Face folder, a hub id (org/name or org/name@revision), a .gguf file, an .onnx file, or a "
    f"demo name ({', '.join(DEMOS)})"
)


def open_model(ref: str, *, revision: str | None = None) -> Source:
    """Find and read a model. Nothing large is loaded: weights are lazy.

    Args:
        ref: a folder, a ``.gguf`` or ``.onnx`` file, a hub id ``org/name[@revision]``, or a demo name. A demo
            name and a path that exists win over a hub id without an organisation (``gpt2``).
        revision: branch, tag or commit, for hub ids only.

    Raises:
        SourceError: nothing by that name, or it cannot be read; every problem found is named.
        UnsupportedModel: it was read, but cannot be compiled; the message says why.
    """
    if not ref:
        raise SourceError(_unknown(ref))
    path = _path(ref)
    if ref not in DEMOS and not _exists(path):
        name, _, at = ref.partition("@")
        named = _HUB_ID.fullmatch(name) or _BARE_NAME.fullmatch(name)
        if not named or path.suffix in (".gguf", ".onnx", *PICKLES):
            raise SourceError(_unknown(ref))
        if revision is not None and at not in ("", revision):
            raise SourceError(f"{ref!r} and revision {revision!r} name two revisions. Leave one out.")
        return open_folder(_fetched(ref, name, revision or at or None), ref)
    if revision is not None:
        raise SourceError(
            f"A revision ({revision}) belongs to a hub id; {ref!r} is a local model. Leave it out."
        )
    if ref in DEMOS and not _exists(path):
        path = locate_demo(ref)
    return _open_path(path, ref)


def _fetched(ref: str, name: str, revision: str | None) -> Path:
    """The snapshot of a hub model; a bare name that the hub has not is rather a misspelt demo or path."""
    try:
        return fetch_snapshot(name, revision)
    except NotOnHub as error:
        if "/" in name:
            raise
        raise SourceError(f"{_unknown(ref)} As a hub id: {error}") from error


def _open_path(path: Path, ref: str) -> Source:
    if path.is_dir():
        return open_folder(path, ref)
    if path.suffix == ".gguf":
        return open_gguf(path, ref)
    if path.suffix == ".onnx":
        return open_onnx(path, ref)
    if path.suffix == ".safetensors":
        raise SourceError(
            f"{ref} holds weights only. Name its folder, which holds config.json too: {path.parent}"
        )
    if path.suffix in PICKLES:
        raise SourceError(f"{ref} is a pickle. {NO_PICKLES}.")
    raise SourceError(f"{ref} is a file of unknown kind {path.suffix!r}. A model is {_FORMS}.")


def _path(ref: str) -> Path:
    try:
        return Path(ref).expanduser()
    except RuntimeError as error:
        raise SourceError(f"{ref}: {error}") from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _unknown(ref: str) -> str:
    nearest = difflib.get_close_matches(ref.lower(), DEMOS, n=1, cutoff=0.4)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"There is no model {ref!r}.{hint} A model is {_FORMS}."
