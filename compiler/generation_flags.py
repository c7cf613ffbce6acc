"""The generation options of ``run`` and ``chat``: transformers' names and meanings."""

from typing import Annotated

import typer

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", help="At most so many new tokens.")
]
DoSample = Annotated[
    bool | None,
    typer.Option("--do-sample/--greedy", help="Draw tokens, or take the likeliest. Default: the model's."),
]
Temperature = Annotated[float | None, typer.Option(help="Above 1 flattens, below 1 sharpens.")]
TopK = Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens.")]
TopP = Annotated[float | None, typer.Option(help="Draw from the likeliest tokens with this share together.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1 discourages what was said before.")]
Seed = Annotated[int | None, typer.Option(help="For the same draw again.")]
MaxDraftTokens = Annotated[
    int | None,
    typer.Option(
        "--max-draft-tokens",
        help="Speculative decoding: draft at most so many tokens per step; 0: none. Default: the artifact's.",
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="DIR|layer-skip|draft-model",
        help="What drafts: a smaller artifact with the same tokenizer, or the model less the layers that it "
        "was compiled to leave out, or the pruned copy that it was compiled with. Default: the artifact's, "
        "else n-grams of the text.",
        show_default=False,
    ),
]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End before this text; repeat for more.")]
