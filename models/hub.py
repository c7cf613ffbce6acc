"""Models on a Hugging Face hub: fetched into its cache, then read like any folder.

``huggingface_hub`` does the transport and honours ``HF_HOME``, ``HF_TOKEN``, ``HF_ENDPOINT`` and
``HF_HUB_OFFLINE``. Only files that are read here are fetched: never pickles, never a second copy of weights.
"""

from pathlib import Path

from onnxforge.models.errors import SourceError
from onnxforge.models.hf_folder import INDEX, NO_PICKLES, PACKING, PICKLES, WEIGHTS
from onnxforge.models.sidecars import MODULE_CONFIGS, SIDECARS

_WANTED = (
    "config.json",
    WEIGHTS,
    INDEX,
    "model-*.safetensors",
    *PACKING,
    MODULE_CONFIGS,
    *SIDECARS,
)


class NotOnHub(SourceError):
    """The hub has no such model, as far as it can be asked from here."""


def fetch_snapshot(name: str, revision: str | None) -> Path:
    """The folder in the hub cache that holds ``name`` at ``revision`` (default: the main branch).

    Raises:
        NotOnHub: no such repository, or a private one; or not cached, and offline or without network.
        SourceError: no such revision, gated, an interrupted download, or no safetensors weights.
    """
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{name}@{revision}" if revision else name
    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=[*_WANTED]))
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{what} is gated on {_endpoint()}: its licence must be accepted there first. Accept it on the "
            "model's page with your account, then set HF_TOKEN to a token of that account."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(
            f"{name} on {_endpoint()} has no revision {revision!r}. Name a branch, a tag or a commit of it."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotOnHub(
            f"{what} is not on {_endpoint()}, or is private. Check the spelling; for a private model set "
            "HF_TOKEN."
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise NotOnHub(_not_cached(what, error)) from error
    except Exception as error:  # the client passes on the errors of whichever HTTP library it uses
        raise SourceError(
            f"{what} could not be fetched from {_endpoint()}: {type(error).__name__}: {error}. Try again; "
            "what was already fetched is kept."
        ) from error
    if not (folder / WEIGHTS).exists() and not (folder / INDEX).exists():
        raise SourceError(_no_weights(name, what, revision))
    return folder


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _not_cached(what: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    cache = constants.HF_HUB_CACHE
    if constants.is_offline_mode() or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
        return (
            f"{what} is not (completely) in the cache {cache}, and HF_HUB_OFFLINE forbids fetching it. Unset "
            "HF_HUB_OFFLINE once, or name a folder."
        )
    reason = error.__cause__ or error
    return (
        f"{what} is not in the cache {cache}, and {_endpoint()} cannot be reached: {type(reason).__name__}: "
        f"{reason}. Check the network, or name a folder."
    )


def _no_weights(name: str, what: str, revision: str | None) -> str:
    """What the repository holds instead of safetensors, as far as the hub still answers."""
    import huggingface_hub

    try:
        files = huggingface_hub.HfApi().list_repo_files(name, revision=revision)
    except Exception:  # the answer only improves the message
        files = []
    pickles = [file for file in files if file.endswith(PICKLES)]
    others = [file for file in files if file.endswith((".gguf", ".onnx"))]
    message = f"{what} on {_endpoint()} has no {WEIGHTS} and no {INDEX}."
    if pickles:
        message += f" Its weights are pickles ({', '.join(pickles[:4])}). {NO_PICKLES}."
    if others:
        message += f" It holds {', '.join(others[:4])}: download one of these and name the file."
    return message if pickles or others else f"{message} Name a repository with safetensors weights."
