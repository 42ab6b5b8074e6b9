"""A report as HTML: a page that needs nothing from the network, or a part of one.

Everything is escaped, what does not print is written out, and what stands in backticks in running
text is code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from modelassay.report.sections import HasSections, Section, Status, Table, Tone, sections_of
from modelassay.report.text import plain_line

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLOURS: dict[Tone, str] = {
    "good": "#1a7f37",
    "warning": "#9a6700",
    "bad": "#b42318",
    "neutral": "#57606a",
    "muted": "#8c959f",
}
PAGE_STYLE, STYLE = (
    (Path(__file__).parent / name).read_text(encoding="utf-8") for name in ("page.css", "style.css")
)


def to_html(report: HasSections | Iterable[Section]) -> str:
    """A whole document: verdict, tables, charts, provenance."""
    sections = sections_of(report)
    figures = [section.chart() if section.chart else None for section in sections]
    drawn = iter(charts_html([figure for figure in figures if figure is not None]))
    body = "".join(
        section_html(section, chart="" if figure is None else next(drawn))
        for section, figure in zip(sections, figures, strict=True)
    )
    lead = sections[0].status if sections else None
    title = lead.subject if lead else sections[0].title if sections else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>modelassay: {_text(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head>"
        f'<body class="assay">{body}</body></html>\n'
    )


def fragment(report: HasSections | Iterable[Section]) -> str:
    """The same without its charts, with its style, to stand in a notebook or on another page."""
    body = "".join(section_html(section) for section in sections_of(report))
    return f'<div class="assay"><style>{STYLE}</style>{body}</div>'


def section_html(section: Section, *, chart: str = "") -> str:
    """One section.

    Args:
        section: The section.
        chart: Its chart, as HTML already.
    """
    parts = []
    if section.title:
        title = section.title[:1].upper() + section.title[1:]
        parts.append(f"<h{section.level}>{_text(title)}</h{section.level}>")
    if section.status is not None:
        parts.append(card(section.status))
    parts += [f"<p>{_prose(line)}</p>" for line in section.lines if line]
    if section.items:
        kind = "ol" if section.numbered else "ul"
        items = "".join(f"<li>{_prose(item)}</li>" for item in section.items)
        parts.append(f"<{kind}>{items}</{kind}>")
    if section.code:
        lines = "\n".join(map(_text, section.code.splitlines()))
        parts.append(f"<pre>{lines}</pre>")
    parts.append(chart)
    if section.table is not None and section.table.rows:
        parts.append(table_html(section.table))
    if section.facts:
        parts.append(facts_html(section.facts))
    if section.note:
        parts.append(f'<p class="small">{_prose(section.note)}</p>')
    return "".join(parts)


def card(status: Status) -> str:
    """A coloured card of a verdict and its reasons."""
    colour = COLOURS[status.tone]
    reasons = "".join(f"<li>{_prose(reason)}</li>" for reason in status.reasons)
    return (
        f'<div class="card" style="border-left:8px solid {colour};padding:1rem 1.5rem">'
        f'<div>{_text(status.subject)}</div><h1 style="color:{colour};margin:.2rem 0">'
        f"{_text(status.value)}</h1><ul>{reasons}</ul></div>"
    )


def table_html(table: Table) -> str:
    """A table with its header."""
    columns, rows = table.seen(wide=True)
    right = [' class="right"' if column.align == "right" else "" for column in columns]
    head = "".join(
        f"<th{cls}>{_text(column.name)}</th>" for cls, column in zip(right, columns, strict=True)
    )
    body = ""
    for number, row in enumerate(rows):
        best = ' class="best"' if number == table.best else ""
        body += f"<tr{best}>"
        for cls, column, cell in zip(right, columns, row, strict=True):
            tone = column.tones.get(cell)
            colour = f' style="color:{COLOURS[tone]}"' if tone else ""
            body += f"<td{cls}{colour}>{_text(cell)}</td>"
        body += "</tr>"
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values as a table without a header."""
    rows = "".join(
        f'<tr><td class="name">{_text(name)}</td><td>{_text(value)}</td></tr>'
        for name, value in facts
    )
    return f"<table><tbody>{rows}</tbody></table>"


def charts_html(charts: Sequence[Figure]) -> list[str]:
    """Plotly figures as HTML, plotly's own code with the first of them, which must come first."""
    return [
        chart.to_html(full_html=False, include_plotlyjs=(i == 0), config={"displaylogo": False})
        for i, chart in enumerate(charts)
    ]


def _text(text: str) -> str:
    return escape(plain_line(text))


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
