"""A report in the terminal; nothing in a cell is read as markup or steers the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.table import Table as Grid
from rich.text import Text

from modelassay.report.sections import HasSections, Section, Status, Table, Tone, sections_of
from modelassay.report.text import plain_line

STYLES: dict[Tone, str] = {
    "good": "green",
    "warning": "yellow",
    "bad": "red",
    "neutral": "",
    "muted": "dim",
}


def print_report(report: HasSections | Iterable[Section], console: Console) -> None:
    """Prints all sections; a verdict that leads the report comes last, next to the prompt.

    Args:
        report: A report, or sections of one.
        console: Where to.
    """
    sections = sections_of(report)
    for number, section in enumerate(sections):
        if section.title and (section.has_text or section.note or section.chart is None):
            if number:
                console.print()
            _say(console, section.title, "bold")
        for line in section.lines:
            _say(console, line)
        for count, item in enumerate(section.items, 1):
            mark = f"{count}. " if section.numbered else ""
            console.print(Text(mark + plain_line(item)), soft_wrap=True)
        if section.code:
            console.print(Text("\n".join(map(plain_line, section.code.splitlines()))))
        if section.table is not None:
            _print_table(section.table, console)
        if section.facts:
            _print_facts(section.facts, console)
        if section.note:
            _say(console, section.note, "dim")
        if section.status is not None and number:
            _print_status(section.status, console)
    if sections and sections[0].status is not None:
        _print_status(sections[0].status, console)


def to_text(report: HasSections | Iterable[Section], *, width: int = 80) -> str:
    """The same as plain text, without colours."""
    console = Console(width=width, color_system=None, force_terminal=False, force_jupyter=False)
    with console.capture() as captured:
        print_report(report, console)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _say(console: Console, line: str, style: str = "") -> None:
    console.print(Text(plain_line(line), style=style))


def _print_table(table: Table, console: Console) -> None:
    columns, rows = table.seen(wide=False)
    if not rows:
        return
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in columns:
        grid.add_column(
            Text(column.name), justify=column.align, no_wrap=column.whole, overflow="fold"
        )
    for number, row in enumerate(rows):
        cells = zip(columns, row, strict=True)
        grid.add_row(
            *(Text(plain_line(cell), STYLES[c.tones.get(cell, "neutral")]) for c, cell in cells),
            style="bold" if number == table.best else None,
        )
    console.print(grid)


def _print_facts(facts: Sequence[tuple[str, str]], console: Console) -> None:
    grid = Grid(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(Text(plain_line(name)), Text(plain_line(value)))
    console.print(grid)


def _print_status(status: Status, console: Console) -> None:
    body = Text("\n".join(f"• {plain_line(reason)}" for reason in status.reasons))
    title = Text(plain_line(status.value), style=f"bold {STYLES[status.tone]}".strip())
    console.print(Panel(body, title=title, title_align="left", expand=True))
