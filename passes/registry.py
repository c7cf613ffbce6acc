"""Every pass by its kebab-case name. One phrase, four spellings: the name gives the file and the class."""

import importlib

from onnxforge.passes.base import GraphStep

NAMES: tuple[str, ...] = (
    "canonicalize",
    "fuse-norm",
    "fuse-rotary",
    "fuse-attention",
    "pack-qkv",
    "fuse-activation",
    "fuse-skip-norm",
    "prune-layers",
    "decompose-attention",
    "prune-vocabulary",
    "fold-scales",
    "scale-inputs",
    "search-scales",
    "insert-qdq",
    "quantize-weights",
    "separate-bias",
    "fuse-quantized-gather",
    "convert-float16",
    "quantize-cache",
    "limit-logits",
    "cleanup",
    "prune-heads",
    "prune-mlp",
    "skip-layers",
    "add-speculative-loop",
    "add-text-io",
)


def pass_class(name: str) -> type[GraphStep]:
    """The class behind ``name``: ``fuse-attention`` is ``FuseAttention`` in ``passes/fuse_attention.py``.

    Modules load when they are asked for, so that listing targets imports none of them.

    Raises:
        KeyError: no pass has this name.
    """
    if name not in NAMES:
        raise KeyError(name)
    module = importlib.import_module(f"onnxforge.passes.{name.replace('-', '_')}")
    found = getattr(module, "".join(word.capitalize() for word in name.split("-")))
    if not (isinstance(found, type) and issubclass(found, GraphStep)):
        raise TypeError(f"{module.__name__}: {found!r} is no GraphStep")
    return found
