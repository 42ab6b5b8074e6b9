"""`modelassay report card` and `modelassay report badge`: a report to show to others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelassay.cli import output
from modelassay.files.atomic import explain_os_errors, new_file, write_text_atomically
from modelassay.report.badge import BADGE_FILE, card_section, snippet, to_svg
from modelassay.report.card import to_png
from modelassay.report.headline import Headline, headline, read_headline

Report = Annotated[
    str,
    typer.Argument(
        help="A report's JSON, as --json and the page give it, or the name of a kept report.",
        show_default=False,
    ),
]
Link = Annotated[str, typer.Option(help="Address of the whole report, which the text leads to.")]


def card_command(
    report: Report,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture.")] = Path("card.png"),
) -> None:
    """Draw a report as a PNG card: verdict, model, commit, numbers, date."""
    output.check_file(out, "--out")
    picture = to_png(_headline(report))
    with explain_os_errors(f"writing {out}"), new_file(out) as partial:
        partial.write_bytes(picture)
    typer.echo(f"{out}", err=True)


def badge_command(
    report: Report,
    out: Annotated[Path, typer.Option("--out", "-o", help="The badge.")] = Path(BADGE_FILE),
    link: Link = "",
    section: Annotated[
        bool, typer.Option("--section", help="Print a whole section for a model card.")
    ] = False,
) -> None:
    """Make a badge (SVG) of a report, and print the Markdown that shows it in a model card."""
    output.check_file(out, "--out")
    found = _headline(report)
    write_text_atomically(out, to_svg(found))
    if section:
        typer.echo(card_section(found, link=link, badge=out.name))
    else:
        typer.echo(snippet(found, image=out.name, link=link))


def _headline(report: str) -> Headline:
    path = Path(report)
    if path.is_file() or path.suffix == ".json":
        return read_headline(path)
    from modelassay.reports import REPORTS, load_report

    return headline(load_report(REPORTS.find(report).folder))
