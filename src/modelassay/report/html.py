"""A report as HTML: a page that needs nothing from the network, or a part of one.

The verdict stands on top, and below it the evidence as cards that open. Everything is escaped, what
does not print is written out, and what stands in backticks in running text is code. Charts stand
there as data, which `charts.js` draws.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Literal

from modelassay.errors import InputError
from modelassay.report.chart_data import keep_chart
from modelassay.report.sections import HasSections, Section, Status, Table, Tone, sections_of
from modelassay.report.text import plain_line

COLOURS: dict[Tone, str] = {
    "good": "#1a7f37",
    "warning": "#8f5f00",
    "bad": "#b42318",
    "neutral": "#4f5964",
    "muted": "#5d6772",
}
"""On white; style.css has those for both backgrounds."""
PATHS: dict[Tone, str] = {
    "good": '<circle cx="12" cy="12" r="10"/><path d="m7.5 12.3 3 3 6-6.3"/>',
    "warning": '<path d="M12 2.6 22 20.5H2z"/><path d="M12 9.5v5M12 17.4v.2"/>',
    "bad": '<path d="M8 2h8l6 6v8l-6 6H8l-6-6V8z"/><path d="m8.6 8.6 6.8 6.8m0-6.8-6.8 6.8"/>',
    "neutral": '<path d="m12 1.8 10.2 10.2L12 22.2 1.8 12z"/>'
    '<path d="M9.6 9.6a2.5 2.5 0 1 1 3.6 2.3c-.8.4-1.2.9-1.2 1.8M12 16.4v.2"/>',
    "muted": '<circle cx="12" cy="12" r="10"/><path d="M7.5 12h9"/>',
}
"""A symbol for each tone: circle, triangle, octagon, diamond; no two differ by colour alone."""
HERE = Path(__file__).parent
PAGE_STYLE, STYLE, SCRIPT, DARK = (
    (HERE / name).read_text(encoding="utf-8")
    for name in ("page.css", "style.css", "charts.js", "dark.css")
)
"""`DARK` is what `.assay` has in place of its colours on a dark page."""
Opened = Literal["all", "first"]


def to_html(report: HasSections | Iterable[Section]) -> str:
    """A whole document: verdict, tables, charts, provenance."""
    sections = sections_of(report)
    body = page_html(sections, opened="all")
    dark = f"@media (prefers-color-scheme:dark){{body.assay{{{DARK}}}}}"
    lead = sections[0].status if sections else None
    title = lead.subject if lead else sections[0].title if sections else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>modelassay: {_text(title)}</title><style>{STYLE}{PAGE_STYLE}{dark}</style></head>"
        f'<body class="assay"><main>{body}</main>{_scripts(body)}</body></html>\n'
    )


def fragment(report: HasSections | Iterable[Section]) -> str:
    """The same without its charts, with its style, to stand in a notebook or on another page."""
    body = page_html(report, charts=False, opened="all")
    return f'<div class="assay"><style>{STYLE}</style>{body}</div>'


def page_html(
    report: HasSections | Iterable[Section], *, charts: bool = True, opened: Opened = "first"
) -> str:
    """Verdict and cards alone, for a page that has `style.css` and `charts.js` already.

    Args:
        report: A report, or sections of one.
        charts: Whether there are charts.
        opened: Which cards are open.
    """
    parts: list[str] = []
    cards = 0
    for title, sections in _grouped(sections_of(report)):
        inside = "".join(section_html(section, charts=charts) for section in sections)
        if not inside:
            continue
        if title is None:
            parts.append(inside)
            continue
        shown = " open" if opened == "all" or not cards else ""
        cards += 1
        heading = title[:1].upper() + title[1:]
        parts.append(
            f'<details class="card"{shown}><summary><h2>{_text(heading)}</h2></summary>'
            f'<div class="inside">{inside}</div></details>'
        )
    return "".join(parts)


def section_html(section: Section, *, charts: bool = True) -> str:
    """What is in one section, without its title if a card has that.

    Args:
        section: The section.
        charts: Whether there are charts.
    """
    parts = []
    if section.title and (section.level != 2 or section.status is not None):
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
        parts.append(f'<pre tabindex="0">{lines}</pre>')
    if charts:
        parts.append(chart_html(section))
    if section.table is not None and section.table.rows:
        parts.append(table_html(section.table, section.title or section.name))
    if section.facts:
        parts.append(facts_html(section.facts))
    if section.note:
        parts.append(f'<p class="small">{_prose(section.note)}</p>')
    return "".join(parts)


def symbol(tone: Tone) -> str:
    """The symbol of a tone, in its colour."""
    return (
        f'<span class="mark tone-{tone}" aria-hidden="true"><svg viewBox="0 0 24 24" fill="none"'
        ' stroke="currentColor" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">'
        f"{PATHS[tone]}</svg></span>"
    )


def card(status: Status) -> str:
    """A verdict at a glance: symbol, colour and word, and its reasons."""
    reasons = "".join(f"<li>{_prose(reason)}</li>" for reason in status.reasons)
    about = f'<p class="subject">{_text(status.subject)}</p>' if status.subject else ""
    return (
        f'<section class="verdict {status.tone}">{symbol(status.tone)}<div>{about}'
        f'<h1 class="tone-{status.tone}">{_text(status.value)}</h1></div>'
        f"{f'<ul>{reasons}</ul>' if reasons else ''}</section>"
    )


def chart_html(section: Section) -> str:
    """A section's chart as data; nothing where there is nothing to draw, or it cannot be kept."""
    try:
        chart = keep_chart(section.chart)
    except InputError as error:
        return f'<p class="small">{_text(str(error))}</p>'
    if chart is None:
        return ""
    values = json.dumps(chart.values, ensure_ascii=False, separators=(",", ":"))
    title = chart.values.get("layout", {}).get("title", {})
    label = (title.get("text") if isinstance(title, dict) else None) or section.title or "Chart"
    return (
        f'<figure class="chart" role="group" aria-label="Chart: {_text(str(label))}"'
        f' data-chart="{escape(values)}"></figure>'
    )


def table_html(table: Table, label: str = "") -> str:
    """A table with its header.

    Args:
        table: The table.
        label: What a screen reader calls it.
    """
    columns, rows = table.seen(wide=True)
    right = [' class="right"' if column.align == "right" else "" for column in columns]
    head = "".join(
        f'<th scope="col"{cls}>{_text(column.name)}</th>'
        for cls, column in zip(right, columns, strict=True)
    )
    body = ""
    for number, row in enumerate(rows):
        best = ' class="best"' if number == table.best else ""
        body += f"<tr{best}>"
        for cls, column, cell in zip(right, columns, row, strict=True):
            tone = column.tones.get(cell)
            text = f'<span class="tone-{tone}">{_text(cell)}</span>' if tone else _text(cell)
            body += f"<td{cls}>{text}</td>"
        body += "</tr>"
    named = f' role="region" aria-label="{_text(label)}"' if label else ""
    return (
        f'<div class="wide" tabindex="0"{named}><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts_html(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values as a table without a header."""
    rows = "".join(
        f'<tr><td class="name">{_text(name)}</td><td>{_text(value)}</td></tr>'
        for name, value in facts
    )
    return f"<table><tbody>{rows}</tbody></table>"


def _grouped(sections: Sequence[Section]) -> list[tuple[str | None, list[Section]]]:
    """Sections by the card they are in; None for what stands above and between the cards."""
    found: list[tuple[str | None, list[Section]]] = []
    for section in sections:
        rest = replace(section, status=None, title=section.title or section.name)
        in_card = bool(found) and found[-1][0] is not None
        if section.status is not None and (rest.has_text or section.chart is not None):
            found += [(None, [Section(status=section.status)]), (rest.title, [rest])]
        elif section.status is None and section.title and section.level == 2:
            found.append((section.title, [section]))
        elif in_card and section.status is None and section.level != 1:
            found[-1][1].append(section)
        else:
            found.append((None, [section]))
    return found


def _scripts(body: str) -> str:
    """What draws charts, if there are any; plotly's own code is in it."""
    if "data-chart=" not in body:
        return ""
    from plotly.offline import get_plotlyjs

    return f"<script>{get_plotlyjs()}</script><script>{SCRIPT}</script>"


def _text(text: str) -> str:
    return escape(plain_line(text))


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
