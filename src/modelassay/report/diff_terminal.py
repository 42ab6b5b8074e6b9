"""A comparison in the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from modelassay.diff import DiffReport, DiffVerdict
from modelassay.report import diff_rows

STYLES = {
    DiffVerdict.BENIGN_LIKE: "bold green",
    DiffVerdict.SUSPICIOUS: "bold yellow",
    DiffVerdict.COMPROMISED: "bold red",
    DiffVerdict.INCONCLUSIVE: "bold",
}
TOP = 10  # rows of triggers, features and directions


def print_diff(
    report: DiffReport,
    console: Console,
    *,
    show_answers: bool = False,
) -> None:
    """Prints all streams of evidence, and the verdict last.

    Args:
        report: The comparison.
        console: Where to.
        show_answers: Print answers that differ.
    """
    _table(console, "streams of evidence", diff_rows.stream_rows(report), numbers=(1, 2, 3))
    _say(console, "Level: distance from benign fine-tunes, in units of their spread.", style="dim")
    _say(console, "* Grows with any training, so it does not enter the score.", style="dim")
    _facts(console, "weights", diff_rows.weight_rows(report))
    _title(console, "behaviour")
    _table(console, None, diff_rows.refusal_rows(report), numbers=(1, 2, 3, 4, 5, 6))
    _facts(console, None, diff_rows.behaviour_rows(report))
    _table(console, "states, by block", diff_rows.layer_rows(report), numbers=(0, 1, 2, 3, 4))
    _table(console, "mean change on unrelated text, as tokens", diff_rows.lens_rows(report))
    _title(console, "triggers")
    _say(console, diff_rows.trigger_line(report))
    _table(console, None, diff_rows.trigger_rows(report, TOP), numbers=(1, 2, 3))
    if report.dictionaries:
        _title(console, "features")
        for line in diff_rows.dictionary_lines(report):
            _say(console, line)
        rows = diff_rows.feature_rows(report, TOP)
        # One column of words, for eighty characters are few.
        rows = [[*row[:-2], "; ".join(filter(None, row[-2:]))] for row in rows]
        _table(console, None, rows, numbers=(2, 3, 4))
    _title(console, "do these directions make the change in refusals?")
    if line := diff_rows.cause_line(report.causal):
        _say(console, line)
    _table(console, None, diff_rows.cause_rows(report.causal), numbers=(1, 2, 3, 4, 5))
    if show_answers:
        _table(console, "answers that differ", diff_rows.answer_rows(report))
    _facts(console, "models", diff_rows.provenance_rows(report))
    style = STYLES[report.verdict]
    body = Text("\n".join(f"• {reason}" for reason in diff_rows.reasons(report)))
    title = Text(report.verdict.value, style=style)
    console.print(Panel(body, title=title, title_align="left", expand=True))


def _title(console: Console, title: str) -> None:
    console.print()
    _say(console, title, style="bold")


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(line, style=style))


def _table(
    console: Console, title: str | None, rows: diff_rows.Rows, *, numbers: Sequence[int] = ()
) -> None:
    """Prints a table, or nothing where there is only a header.

    Cells are `Text`, so that no markup in them is read.
    """
    header, *body = rows
    if not body:
        return
    if title is not None:
        _title(console, title)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i in numbers else "left", overflow="fold")
    for row in body:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _facts(console: Console, title: str | None, rows: diff_rows.Rows) -> None:
    if title is not None:
        _title(console, title)
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in rows:
        facts.add_row(Text(name), Text(value))
    console.print(facts)
