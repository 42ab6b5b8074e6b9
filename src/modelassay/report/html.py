"""A report as one HTML file that needs nothing from the network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import Any

from modelassay.report.charts import all_charts
from modelassay.report.rows import VERIFICATION_TITLES, check_rows, concept_rows, fact_rows
from modelassay.scan.report import ScanReport
from modelassay.scan.verdict import Verdict
from modelassay.verify.report import VerificationReport

COLOURS = {
    Verdict.PASS: "#1a7f37",
    Verdict.WARNING: "#9a6700",
    Verdict.CRITICAL: "#b42318",
    Verdict.INCONCLUSIVE: "#57606a",
}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1060px;margin:2rem auto;padding:0 1rem;
color:#1f2328}
.card{background:#f6f8fa;border-radius:6px}
.card h1{font-size:1.8rem} .card ul{margin:.4rem 0;padding-left:1.2rem}
table{border-collapse:collapse;width:100%;margin:1rem 0;font-size:.93rem}
th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #d8dee4;vertical-align:top}
td{overflow-wrap:anywhere} h2{margin-top:2rem} .small{color:#57606a;font-size:.85rem}
"""


def verdict_card(report: ScanReport) -> str:
    """The verdict and its reasons as an HTML fragment; everything from outside is escaped."""
    return card(_title(report), report.verdict.value, COLOURS[report.verdict], report.reasons)


def verification_card(report: VerificationReport) -> str:
    """Whether a model is the baseline's, and why, as an HTML fragment."""
    like = {True: Verdict.PASS, False: Verdict.CRITICAL, None: Verdict.INCONCLUSIVE}
    title = VERIFICATION_TITLES[report.verified]
    kind = f"{title}: {report.kind.value}" if report.kind else title
    return card(report.model, kind, COLOURS[like[report.verified]], report.reasons)


def card(name: str, title: str, colour: str, reasons: Sequence[str]) -> str:
    """A coloured card of a verdict and its reasons, all escaped; what is in backticks is code."""
    marked = [re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(reason)) for reason in reasons]
    items = "".join(f"<li>{reason}</li>" for reason in marked)
    return (
        f'<div class="card" style="border-left:8px solid {colour};padding:1rem 1.5rem">'
        f'<div>{escape(name)}</div><h1 style="color:{colour};margin:.2rem 0">'
        f"{escape(title)}</h1><ul>{items}</ul></div>"
    )


def to_html(report: ScanReport) -> str:
    """The whole report: verdict, tables, charts, provenance."""
    concepts = table(concept_rows(report))
    identity = ""
    if (verification := report.verification) is not None:
        checks = table(check_rows(verification))
        identity = f"<h2>Identity</h2>{verification_card(verification)}{checks}"
    facts = table([["", ""], *fact_rows(report)])
    charts = "".join(charts_html(all_charts(report)))
    return page(
        _title(report),
        f"{verdict_card(report)}<h2>Separation of concepts</h2>{concepts}"
        '<p class="small">Separation is scored on pairs that were not used to find the direction or'
        " the block. The column AMS is the number that ams-scanner prints, fitted and scored on the"
        " same pairs: much of it can be overfitting.</p>"
        f"{identity}<h2>Evidence</h2>{facts}<h2>Charts</h2>{charts}",
    )


def page(title: str, body: str) -> str:
    """A whole document around a body that is HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>modelassay: {escape(title)}</title><style>{STYLE}</style></head><body>"
        f"{body}</body></html>\n"
    )


def charts_html(charts: Sequence[Any]) -> list[str]:
    """Plotly figures as HTML, plotly's own code with the first of them, which must come first."""
    return [
        chart.to_html(full_html=False, include_plotlyjs=(i == 0), config={"displaylogo": False})
        for i, chart in enumerate(charts)
    ]


def _title(report: ScanReport) -> str:
    return report.model.name


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the header, which is left out where its cells are empty."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:]
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(rows[0]) else ""
    return f"<table>{header}<tbody>{body}</tbody></table>"
