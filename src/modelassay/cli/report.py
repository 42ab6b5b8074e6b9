"""`modelassay report`: reports that were kept, here or by others, shown again."""

from __future__ import annotations

import typer

from modelassay.cli import options, sharing
from modelassay.cli.artifacts import Reference, add_verbs

app = typer.Typer(
    help="Reports that were kept: those that come with modelassay, yours, and others' on the Hub.",
    no_args_is_help=True,
)


@app.command("open")
@options.grouped
def open_command(
    reference: Reference,
    output: options.Reported,
    revision: options.Revision = None,
    token: options.Token = None,
) -> None:
    """Show a kept report with all its evidence."""
    from modelassay.reports import REPORTS, load_report

    found = REPORTS.find(reference, revision=revision, token=token)
    found.warn()
    output.give(load_report(found.folder))


app.command("card")(sharing.card_command)
app.command("badge")(sharing.badge_command)
add_verbs(app, "modelassay.reports:REPORTS", "report")
