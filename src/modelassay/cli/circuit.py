"""`modelassay circuit`: the parts of a model that carry its refusals."""

from __future__ import annotations

from typing import Annotated

import typer

from modelassay.cli import options

app = typer.Typer(help="Circuits: the parts that carry a model's refusals.", no_args_is_help=True)


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
    heads: Annotated[
        bool, typer.Option("--heads", help="Single heads in place of whole attention layers.")
    ] = False,
    pairs: Annotated[int, typer.Option(min=8, max=512, help="Most pairs of prompts.")] = 32,
    exact: Annotated[
        int, typer.Option(min=1, help="Components that are patched one by one, the likeliest.")
    ] = 20,
    all_exact: Annotated[
        bool, typer.Option("--all", help="Patch every component; takes longer.")
    ] = False,
    no_curve: Annotated[
        bool, typer.Option("--no-curve", help="Leave out whether the strongest are a circuit.")
    ] = False,
    no_answers: Annotated[
        bool, typer.Option("--no-answers", help="Leave out what it answers without its circuit.")
    ] = False,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a batch; lower it to save memory.")
    ] = None,
) -> int:
    """Find the attention layers, MLPs or heads that carry the refusals of MODEL.

    A run that was stopped goes on where it was. Exit codes: 0 done, 64 bad input (a model that
    refuses nothing, too), 69 something needed is unavailable, 70 internal error.
    """
    from modelassay.files.atomic import cache_dir
    from modelassay.mechanism import find_circuit

    with progress() as on_progress:
        report = find_circuit(
            model,
            heads=heads,
            n_pairs=pairs,
            exact=None if all_exact else exact,
            curve=not no_curve,
            answers=not no_answers,
            keep=cache_dir() / "circuits",
            batch_tokens=batch_tokens,
            on_progress=on_progress,
            **loading,
        )
    output.give(report)
    return 0
