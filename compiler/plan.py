"""From the options of ``compile`` to a recipe: which model, which target, and what was wished of it."""

from dataclasses import dataclass, replace
from pathlib import Path

from onnxforge.compiler.cache_option import Cache, with_cache
from onnxforge.compiler.recipe import Recipe


@dataclass(frozen=True)
class Wishes:
    """The options that edit a target, as they were written; each is explained where it is applied."""

    kv: Cache | None = None
    calibration: str | None = None
    speculation: str | None = None
    text_io: bool = False
    draft: str | None = None
    prune: str | None = None
    recover: str | None = None


def plan(
    model: str | None,
    target: str | None,
    task: str | None,
    revision: str | None,
    settings: tuple[str, ...],
    without: tuple[str, ...],
    config: Path | None,
    wishes: Wishes,
) -> Recipe:
    """The recipe that the options ask for, with every name in it checked.

    Raises:
        RequestRefused: an unknown target, pass, option or value; a recipe and a target at once.
    """
    from onnxforge.compiler import pipeline
    from onnxforge.compiler.errors import RequestRefused
    from onnxforge.compiler.recipe import read_recipe
    from onnxforge.compiler.speculation_option import check_speculation
    from onnxforge.compiler.target_file import find_target

    if config is not None and target is not None:
        raise RequestRefused("Give --target or --config, not both: a recipe has its target inside.")
    if config is not None:
        recipe = read_recipe(config)
    elif target is not None:
        recipe = Recipe("", find_target(target))
    else:
        raise RequestRefused("Say what to compile for: --target cpu-int8 (see `onnxforge targets`).")
    if not (model or recipe.model):
        raise RequestRefused(
            "Say what to compile: a folder, org/name, a .gguf or .onnx file, or smollm2-135m."
        )
    chosen = _wished(recipe, wishes)
    edited = pipeline.edit(pipeline.parse(chosen.target.passes), settings=settings, without=without)
    planned = replace(chosen.target, passes=tuple(p.text() for p in edited))
    check_speculation(planned)
    return Recipe(
        model=model or recipe.model,
        target=planned,
        task=task or recipe.task,
        revision=revision or recipe.revision,
    )


def _wished(recipe: Recipe, wishes: Wishes) -> Recipe:
    from onnxforge.compiler.draft_option import with_draft
    from onnxforge.compiler.errors import RequestRefused
    from onnxforge.compiler.prune_option import with_pruning
    from onnxforge.compiler.speculation_option import with_speculation
    from onnxforge.compiler.text_io_option import with_text_io

    chosen = recipe.target
    if wishes.recover is not None and wishes.prune is None:
        raise RequestRefused(
            f"--recover {wishes.recover}: nothing is pruned. Say what with --prune, or leave it out."
        )
    if wishes.prune is not None:
        chosen = with_pruning(chosen, wishes.prune, wishes.recover)
    if wishes.kv is not None:
        chosen = with_cache(chosen, wishes.kv)
    if wishes.speculation is not None:
        chosen = with_speculation(chosen, wishes.speculation)
    if wishes.text_io:
        chosen = with_text_io(chosen)
    if wishes.draft is not None:
        chosen = with_draft(chosen, wishes.draft)
    return replace(recipe, target=replace(chosen, calibration=wishes.calibration or chosen.calibration))
