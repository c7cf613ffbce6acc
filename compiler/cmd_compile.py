"""``compile MODEL --target T -o DIR``: the headline."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onnxforge.compiler.cache_option import Cache
from onnxforge.compiler.options import AsJson, Debug
from onnxforge.compiler.plan import Wishes, plan

if TYPE_CHECKING:
    from onnxforge.compiler.request import CompileResult

_Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="Folder, org/name@revision, .gguf or .onnx file, or demo name.",
        show_default=False,
    ),
]
_Target = Annotated[
    str | None,
    typer.Option(
        "--target", "-t", help="Where it is to run (see `onnxforge targets`), or the path of a .toml."
    ),
]


def _folder(text: str) -> Path:
    if not text.strip():  # Path("") is the current folder, and nobody means that by it
        raise typer.BadParameter("it is empty; say where the artifact goes")
    path = Path(text)
    return path if path.name.strip(".") else path.resolve()  # `.` and `..` are no names for an artifact


_Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        parser=_folder,
        help="Folder to write. An artifact there is replaced whole.",
    ),
]
_Task = Annotated[
    str | None,
    typer.Option(help="optimum's task name or a synonym. Default, and auto: what the configuration implies."),
]
_Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="PASS.OPTION=VALUE", help="Change an option of a pass.")
]
_Without = Annotated[list[str] | None, typer.Option("--without", metavar="PASS", help="Leave a pass out.")]
_Kv = Annotated[
    Cache | None,
    typer.Option("--kv", help="Element type of the key-value cache. Default: the target's floating point."),
]
_Config = Annotated[Path | None, typer.Option("--config", help="Replay a recipe that --dry-run printed.")]
_EvalText = Annotated[
    Path | None,
    typer.Option(help="UTF-8 text for the perplexity. Default: a held-out part of Python's own docs."),
]
_Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="What to calibrate on: a .txt or .jsonl file, a data set org/name[:split[:column]], or self "
        "(the model's own text). Default: a part of Python's docs that evaluation never sees.",
    ),
]
_Speculation = Annotated[
    str | None,
    typer.Option(
        metavar="auto|off|N",
        help="Whether requests draft tokens by default, and how many per step. auto: the proof measures "
        "whether that pays.",
    ),
]

_TextIo = Annotated[
    bool,
    typer.Option(
        "--text-io",
        help="Write onnx/model_text.onnx too: text in, text out, with the tokenizer in the graph.",
    ),
]
_Prune = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT=SHARE,...",
        help="Remove a share of mlp (channels), heads, kv-heads, vocabulary, layers or attentions (or a "
        "number of these two): mlp=0.2,layers=4. Or as much as latency, size or flops ask for: latency=0.7.",
    ),
]
_Recover = Annotated[
    str | None,
    typer.Option(
        metavar="none|refit|distill[=MINUTES]",
        help="What makes up for what --prune removed: nothing, least squares (the default), or block-wise "
        "distillation behind it (distill-logits: of the whole model).",
    ),
]
_Draft = Annotated[
    str | None,
    typer.Option(
        metavar="layer-skip[=N+N...]|prune-UNIT=SHARE,...",
        help="Let drafts come from the model itself, with layers left out (those of a search, or the "
        "residual branches of these numbers), or from a copy of it in the same artifact, pruned as --prune "
        "would: prune-layers=0.6,recover=distill. Default: n-grams of the text.",
    ),
]


def compile_(
    model: _Model = None,
    target: _Target = None,
    output: _Output = None,
    task: _Task = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub model.")] = None,
    set_: _Set = None,
    without: _Without = None,
    kv: _Kv = None,
    config: _Config = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe as JSON and stop.")] = False,
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="Measure against the source.")] = True,
    calibration: _Calibration = None,
    speculation: _Speculation = None,
    text_io: _TextIo = False,
    draft: _Draft = None,
    prune: _Prune = None,
    recover: _Recover = None,
    eval_text: _EvalText = None,
    allow_missed_budget: Annotated[
        bool, typer.Option("--allow-missed-budget", help="Publish even if the result is worse than promised.")
    ] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compile MODEL into one folder that plain ONNX Runtime runs, and prove it against its source."""
    wishes = Wishes(kv, calibration, speculation, text_io, draft, prune, recover)
    recipe = plan(model, target, task, revision, tuple(set_ or ()), tuple(without or ()), config, wishes)
    if dry_run:
        from onnxforge.compiler.recipe import to_json

        print(to_json(recipe))
        return
    if output is None:
        raise typer.BadParameter("say where the artifact goes: -o DIR", param_hint="--output")
    with _interrupts_noted(output):
        from onnxforge.compiler.driver import compile_model
        from onnxforge.compiler.eval_text import evaluation_text
        from onnxforge.compiler.headline import headline
        from onnxforge.compiler.progress import progress
        from onnxforge.compiler.request import CompileRequest

        if eval_text is not None:
            evaluation_text(eval_text)  # refuses now what the proof would refuse after the work
        request = CompileRequest(
            model=recipe.model,
            output=output,
            target=recipe.target,
            task=recipe.task,
            revision=recipe.revision,
            proof=proof,
            eval_text=eval_text,
            allow_missed_budget=allow_missed_budget,
            command=("compile", *sys.argv[1:]),
        )
        with progress() as watch:
            result = compile_model(request, progress=watch)
    print(json.dumps(_plain(result)) if as_json else headline(result))


@contextmanager
def _interrupts_noted(output: Path) -> Iterator[None]:
    """Note on an interrupt what is at ``output``: it may come just after the new artifact was put there."""
    before = _identity(output)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as interrupt:
        done = "the new artifact is whole at" if _identity(output) != before else "nothing was changed at"
        interrupt.add_note(f"{done} {output}")
        raise


def _identity(output: Path) -> tuple[int, int] | None:
    """Which artifact is at ``output``, if any."""
    try:
        status = (output / "artifact.json").stat()  # its constant is in a module that takes time to load
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _plain(result: "CompileResult") -> dict[str, object]:
    return {**dataclasses.asdict(result), "output": str(result.output)}
