"""`modelassay jailbreak`: why attacks get past a model's refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelassay.cli import options
from modelassay.errors import InputError

if TYPE_CHECKING:
    from modelassay.report.base import Report

app = typer.Typer(help="Jailbreaks: why attacks get past refusals.", no_args_is_help=True)
SHIPPED = "shipped"


@app.callback()
def _group() -> None:
    """Keeps `explain` a command of its own."""


@app.command("explain")
@options.grouped
def explain_command(
    model: options.Model,
    loading: options.LoadingAsTrained,
    progress: options.Progress,
    output: options.Reported,
    plain: Annotated[str | None, typer.Option(help="A request that MODEL refuses.")] = None,
    jailbroken: Annotated[str | None, typer.Option(help="The same request in its attack.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of the attack.")] = None,
    opening: Annotated[
        str | None, typer.Option(help="What the attack puts at the start of the response.")
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="SUITE",
            help="Many attacks: `shipped`, a file of templates or pairs, or a Hub data set.",
        ),
    ] = None,
    per_attack: Annotated[
        int, typer.Option(min=1, max=1000, help="With --suite: most requests for each attack.")
    ] = 4,
    sae: Annotated[
        str | None,
        typer.Option(help="Of one attack: an SAE of MODEL, if not the shipped one."),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a batch; lower it to save memory.")
    ] = None,
) -> int:
    """Explain one attack (--plain, --jailbroken) or a suite of them (--suite).

    Answers of MODEL are judged and not shown. Exit codes: 0 done, 64 bad input (a plain request
    that is not refused, too), 69 something needed is unavailable, 70 internal error.
    """
    from modelassay.data.attacks import AttackedPrompt
    from modelassay.mechanism import explain_attacks, explain_jailbreak

    pair = (plain, jailbroken or (plain if system or opening else None))
    if (suite is None) == (plain is None and jailbroken is None):
        raise InputError("Give one attack with --plain and --jailbroken, or many with --suite.")
    report: Report
    with progress() as on_progress:
        if suite is not None:
            if system or opening or sae:
                raise InputError("--system, --opening and --sae are for one attack, not --suite.")
            report = explain_attacks(
                model,
                None if suite == SHIPPED else suite,
                per_attack=per_attack,
                batch_tokens=batch_tokens,
                on_progress=on_progress,
                **loading,
            )
        else:
            asked, attacked = pair
            if not asked or not attacked:
                raise InputError("One attack needs both --plain and --jailbroken.")
            report = explain_jailbreak(
                model,
                asked,
                AttackedPrompt(asked, attacked, "given", "given", system=system, opening=opening),
                sae=sae,
                batch_tokens=batch_tokens,
                on_progress=on_progress,
                **loading,
            )
    output.give(report)
    return 0
