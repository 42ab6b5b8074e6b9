"""A report as Markdown; a page that shows it takes texts from outside for text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from modelassay.report.sections import HasSections, Section, Table, sections_of
from modelassay.report.text import plain_line


def to_markdown(report: HasSections | Iterable[Section]) -> str:
    """All sections but their charts."""
    lines: list[str] = []
    for section in sections_of(report):
        lines += _section(section)
    return "\n".join(lines)


def markdown_table(table: Table) -> list[str]:
    """A table's lines."""
    columns, rows = table.seen(wide=True)
    rule = "|".join("---:" if column.align == "right" else "---" for column in columns)
    return [
        f"| {' | '.join(_cell(column.name) for column in columns)} |",
        f"|{rule}|",
        *(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows),
    ]


def _cell(text: str) -> str:
    """Text that is not a markup of any kind."""
    return re.sub(r"([\\`*|])", r"\\\1", _prose(text))


def _prose(text: str) -> str:
    """Text on one line that makes no tag, link or image; backticks and asterisks keep their use."""
    return re.sub(r"([\[\]])", r"\\\1", escape(plain_line(text), quote=False))


def _section(section: Section) -> list[str]:
    lines: list[str] = []
    if section.title and (section.has_text or section.note or section.chart is None):
        title = section.title[:1].upper() + section.title[1:]
        lines += [f"{'#' * section.level} {_cell(title)}", ""]
    if (status := section.status) is not None:
        subject = f"{_cell(status.subject)}: " if status.subject else ""
        lines += [f"{subject}**{_cell(status.value)}**", ""]
        lines += [*(f"* {_prose(reason)}" for reason in status.reasons), ""]
    for line in section.lines:
        lines += [_prose(line), ""]
    if section.items:
        marks = [f"{i}." if section.numbered else "*" for i, _ in enumerate(section.items, 1)]
        pairs = zip(marks, section.items, strict=True)
        lines += [*(f"{mark} {_prose(item)}" for mark, item in pairs), ""]
    if section.code:
        lines += ["```json", section.code.replace("```", "'''"), "```", ""]
    if section.table is not None and section.table.rows:
        lines += [*markdown_table(section.table), ""]
    if section.facts:
        lines += [*(f"* **{_cell(name)}**: {_cell(value)}" for name, value in section.facts), ""]
    if section.note:
        lines += [f"<small>{_prose(section.note)}</small>", ""]
    return lines
