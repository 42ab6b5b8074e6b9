"""Where the page shows reports: one that was just made, one that was kept, or a tab's example."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from modelassay.errors import InputError
from modelassay.report import Report
from modelassay.report.html import page_html
from modelassay.report.text import plain_line
from modelassay.reports import REPORTS, ReportRecord, load_report

MADE_BY = {
    "verify": "verification of {model} against {against}",
    "diff": "comparison of {model} with {against}",
    "features": "features of {model}",
    "jailbreak": "a jailbreak of {model}",
}
"""What an example is called, besides the scan of a model and its like."""
MAX_SETTING = 40
"""Characters of a setting that is shown beside the date; the report has longer ones."""


class ReportView:
    """A report's place; until there is one, an example of what will stand there."""

    def __init__(self, example: str = "") -> None:
        """Makes the component inside the current `gr.Blocks`.

        Args:
            example: Name of a report that comes with modelassay; empty for none.
        """
        html = example_html(example) if example else ""
        self.html = gr.HTML(html, visible=bool(html), padding=False)

    @property
    def components(self) -> list[Any]:
        """All of it, for the outputs of an event."""
        return [self.html]

    def updates(self, report: Report) -> list[Any]:
        """Updates of all components, in their order."""
        return [gr.update(value=report_html(report), visible=True)]


def report_html(report: Report, lead: str = "") -> str:
    """A report as the page shows it.

    Args:
        report: Any product's, or one that was kept.
        lead: HTML that stands above it.
    """
    return f'<div class="assay">{lead}{page_html(report)}</div>'


def kept_html(record: ReportRecord, report: Report, *, author: str | None = None) -> str:
    """A kept report below what is known of it: when, of which weights, with which settings."""
    return report_html(report, meta_html(record, author=author))


def example_html(name: str) -> str:
    """A report that comes with modelassay, shown as an example; empty if it is not there."""
    if not (REPORTS.shipped_folder() / name).is_dir():
        return ""
    try:
        found = REPORTS.find(name)
        report = load_report(found.folder)
    except InputError:  # a damaged one must not keep the page from opening
        return ""
    record = found.record
    made = MADE_BY.get(record.product, f"{record.product} of {{model}}")
    what = _text("Example: " + made.format(model=record.model.id, against=record.against))
    tag = f'<span class="example-tag">{what}</span>'
    return report_html(report, tag + meta_html(record))


def meta_html(record: ReportRecord, *, author: str | None = None) -> str:
    """When a report was made, of which weights, and with which settings, in one line."""
    model = record.model
    parts = [f"made {_text(record.created[:10])}"]
    if author:
        parts.append(f"by {_text(author)} on the Hub")
    if model.revision:
        parts.append(f"commit <code>{_text(model.revision[:12])}</code>")
    elif model.weights_sha256:
        parts.append(f"weights sha256 <code>{_text(model.weights_sha256[:12])}…</code>")
    parts.append(f"modelassay {_text(record.versions.get('modelassay', '?'))}")
    for name, value in list(record.settings.items())[:12]:
        if len(told := _setting(value)) <= MAX_SETTING:
            parts.append(_text(f"{name.replace('_', ' ')}: {told}"))
    if record.seconds is not None:
        parts.append(f"took {record.seconds:.0f} s")
    return f'<p class="meta">{"".join(f"<span>{each}</span>" for each in parts)}</p>'


def prose_html(lines: Sequence[str], kind: str = "lead") -> str:
    """Paragraphs of plain text."""
    return "".join(f'<p class="{kind}">{_text(line)}</p>' for line in lines)


def _setting(value: Any) -> str:
    value = f"{value:g}" if isinstance(value, float) else value
    return {"True": "yes", "False": "no", "None": "none"}.get(str(value), str(value))


def _text(text: str) -> str:
    return escape(plain_line(text))
