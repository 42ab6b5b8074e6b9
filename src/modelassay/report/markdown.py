"""A report as Markdown; a page that shows it takes texts from outside for text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from modelassay.report.sections import Report, Section, Table, sections_of
from modelassay.report.text import plain_line


def to_markdown(report: Report | Iterable[Section]) -> str:
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
        f"| {' | '.join(safe(column.name) for column in columns)} |",
        f"|{rule}|",
        *(f"| {' | '.join(safe(cell) for cell in row)} |" for row in rows),
    ]


def safe(text: str) -> str:
    """Text on one line that makes no tag, link, image, code or table cell."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", escape(plain_line(text), quote=False))


def _section(section: Section) -> list[str]:
    lines: list[str] = []
    if section.title:
        title = section.title[:1].upper() + section.title[1:]
        lines += [f"{'#' * section.level} {safe(title)}", ""]
    if (status := section.status) is not None:
        subject = f"{safe(status.subject)}: " if status.subject else ""
        lines += [f"{subject}**{safe(status.value)}**", ""]
        lines += [*(f"* {safe(reason)}" for reason in status.reasons), ""]
    for line in section.lines:
        lines += [safe(line), ""]
    if section.items:
        lines += [*(f"* {safe(item)}" for item in section.items), ""]
    if section.code:
        lines += ["```", section.code.replace("```", "'''"), "```", ""]
    if section.table is not None and section.table.rows:
        lines += [*markdown_table(section.table), ""]
    if section.facts:
        lines += [*(f"* **{safe(name)}**: {safe(value)}" for name, value in section.facts), ""]
    if section.note:
        lines += [f"<small>{safe(section.note)}</small>", ""]
    return lines
