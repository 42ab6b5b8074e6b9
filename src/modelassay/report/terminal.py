"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from modelassay.report.rows import concept_rows, fact_rows, verification_rows
from modelassay.scan_report import ScanReport
from modelassay.verification.report import VerificationReport

STYLES = {
    "PASS": "bold green",
    "WARNING": "bold yellow",
    "CRITICAL": "bold red",
    "INCONCLUSIVE": "bold",
    "CONTROL": "dim",
    "VERIFIED": "bold green",
    "NOT VERIFIED": "bold red",
    "UNKNOWN": "bold",
}


def print_report(report: ScanReport, console: Console) -> None:
    """Prints the verdict, the concepts and the evidence."""
    header, *rows = concept_rows(report, detailed=False)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        caption="AMS: its own number, fitted and scored on the same pairs.",
        caption_justify="left",
    )
    for name in header:
        numeric = name not in ("concept", "level")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row[:-1], f"[{STYLES[row[-1]]}]{row[-1]}[/]")
    console.print(table)

    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in fact_rows(report):
        facts.add_row(escape(name), escape(value))
    console.print(facts)

    _print_verdict(report.verdict.value, report.reasons, console)


def print_verification(report: VerificationReport, console: Console) -> None:
    """Prints whether the model is the baseline's, and what was compared."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("compared", no_wrap=True)
    table.add_column("")
    table.add_column("found", overflow="fold")
    marks = {"same": "[green]same[/]", "differs": "[red]differs[/]", "unknown": "[dim]unknown[/]"}
    for check in report.checks:
        table.add_row(escape(check.name), marks[check.outcome], escape(check.detail))
    if report.checks:
        console.print(table)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in verification_rows(report):
        facts.add_row(escape(name), escape(value))
    console.print(facts)
    verdict = {True: "VERIFIED", False: "NOT VERIFIED", None: "UNKNOWN"}[report.verified]
    _print_verdict(verdict, report.reasons, console)


def _print_verdict(verdict: str, reasons: Sequence[str], console: Console) -> None:
    body = "\n".join(f"• {escape(reason)}" for reason in reasons)
    console.print(
        Panel(body, title=f"[{STYLES[verdict]}]{verdict}[/]", title_align="left", expand=True)
    )
