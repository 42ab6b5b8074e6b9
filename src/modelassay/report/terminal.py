"""A report in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from modelassay.report.rows import (
    VERIFICATION_TITLES,
    check_rows,
    concept_rows,
    fact_rows,
    verification_rows,
)
from modelassay.scan.report import ScanReport
from modelassay.verify.report import VerificationReport

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


OUTCOME_STYLES = {
    "same": "[green]same[/]",
    "differs": "[red]differs[/]",
    "unknown": "[dim]unknown[/]",
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

    if report.verification is not None:
        print_verification(report.verification, console)
    _print_verdict(report.verdict.value, report.reasons, console)


def print_verification(report: VerificationReport, console: Console) -> None:
    """Prints whether the model is the baseline's, and what was compared."""
    header, *rows = check_rows(report)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in header:
        table.add_column(name, no_wrap=name != "found", overflow="fold")
    for name, outcome, detail in rows:
        table.add_row(escape(name), OUTCOME_STYLES[outcome], escape(detail))
    if rows:
        console.print(table)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in verification_rows(report):
        facts.add_row(escape(name), escape(value))
    console.print(facts)
    verdict = VERIFICATION_TITLES[report.verified]
    _print_verdict(verdict, report.reasons, console)


def _print_verdict(verdict: str, reasons: Sequence[str], console: Console) -> None:
    body = "\n".join(f"• {escape(reason)}" for reason in reasons)
    console.print(
        Panel(body, title=f"[{STYLES[verdict]}]{verdict}[/]", title_align="left", expand=True)
    )
