"""`modelassay features`: features of safety in a model, and what they do for its refusals."""

from __future__ import annotations

from typing import Annotated

import typer

from modelassay.cli import options

app = typer.Typer(help="Features of safety: what an SAE tells of a model.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `find` a command of its own."""


@app.command("find")
@options.grouped
def find_command(
    model: options.Model,
    loading: options.LoadingAsTrained,
    progress: options.Progress,
    output: options.Reported,
    sae: Annotated[
        str | None,
        typer.Option(
            metavar="WHERE",
            help="A folder, the name of a shipped SAE, RELEASE:SAE_ID of sae-lens, or"
            " owner/repo:name; the shipped one of MODEL if left out.",
        ),
    ] = None,
    types: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="refusal, harm_recognition, instruction_following, deception, uncertainty; all"
            " if left out.",
        ),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, max=200, help="Features that each half of a contrast set chooses.")
    ] = 10,
    pairs: Annotated[int, typer.Option(min=8, max=512, help="Most pairs of prompts.")] = 32,
    no_curve: Annotated[
        bool, typer.Option("--no-curve", help="Leave out suppressing features together.")
    ] = False,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a batch; lower it to save memory.")
    ] = None,
) -> int:
    """Find the features of MODEL that tell of safety, and try out what they do for refusals.

    Of a model that refuses nothing, it is only said which features tell the sides of each type
    apart. A run that was stopped goes on where it was. Exit codes: 0 done, 64 bad input, 69
    something needed is unavailable, 70 internal error.
    """
    from modelassay.files.atomic import cache_dir
    from modelassay.mechanism import find_features

    with progress() as on_progress:
        report = find_features(
            model,
            sae=sae,
            types=None if types is None else [name.strip() for name in types.split(",")],
            top=top,
            n_pairs=pairs,
            curve=not no_curve,
            keep=cache_dir() / "features",
            batch_tokens=batch_tokens,
            on_progress=on_progress,
            **loading,
        )
    output.give(report)
    return 0
