"""The Board tab: models that were assayed, here and by others, and a search for one to assay."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLongError
from functools import lru_cache
from html import escape
from time import monotonic
from typing import Any

import gradio as gr

from modelassay.artifacts import Found
from modelassay.artifacts.collection import all_in
from modelassay.errors import AssayError
from modelassay.report.html import symbol
from modelassay.report.sections import Tone
from modelassay.report.text import plain_line
from modelassay.reports import REPORTS, ReportRecord, load_report
from modelassay.ui.model_search import create_model_search
from modelassay.ui.report_view import kept_html, prose_html
from modelassay.ui.running import PRIVATE
from modelassay.ui.service import check_reference, visible

log = logging.getLogger(__name__)

LEAD = (
    "Below are models that have been assayed; open a row to read its report. Most are model"
    " organisms: models whose damage is known, because we did it, so you can see how far to trust a"
    " verdict."
)
TONE_WORDS: dict[Tone, str] = {
    "good": "intact, verified or benign-like",
    "warning": "warning or suspicious",
    "bad": "critical, compromised or not verified",
    "neutral": "inconclusive, or a finding without a verdict",
    "muted": "other",
}
TASKS = {
    "scan": "safety training",
    "verify": "identity",
    "diff": "fine-tune",
    "circuit": "circuit",
    "features": "features",
    "jailbreak": "jailbreak",
}
"""What a product's report is about."""
FRESH_SECONDS = 300
SECONDS = 8.0
"""How long a visitor's page waits for reports by others."""
LEFT_OUT = "Reports by others are left out: the Hub does not answer now."
_POOL = ThreadPoolExecutor(max_workers=1, thread_name_prefix="community")
"""One at a time: who asks meanwhile gets the same answer."""
MAX_SETS, MAX_REPORTS = 10, 20
"""Data sets of others, and reports of each, that the board shows."""
OPEN = """element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-report]');
  if (row) trigger('select', {report: row.dataset.report});
});"""


def create_board_tab(demo: gr.Blocks) -> gr.HTML:
    """Builds the tab inside the current `gr.Blocks`.

    Args:
        demo: The page; what others published is added when it is opened.

    Returns:
        The hits of the search for a model; see `model_search.fill_on_choice`.
    """
    gr.HTML(prose_html([LEAD]), padding=False)
    hits = create_model_search()
    board = gr.HTML(board_html(visible(REPORTS)), js_on_load=OPEN, padding=False)
    said = gr.HTML("", padding=False)
    shown = gr.HTML("", elem_id="opened-report", padding=False)
    board.select(_open, None, [shown], concurrency_limit=8, concurrency_id="board", **PRIVATE)
    demo.load(
        _with_community,
        None,
        [board, said],
        concurrency_limit=8,
        concurrency_id="community",
        **PRIVATE,
    )
    return hits


def board_html(found: Sequence[Found[ReportRecord]]) -> str:
    """The table of reports, with what sorts and filters it."""
    ordered = sorted(found, key=lambda each: each.record.created, reverse=True)
    products = sorted({each.record.product for each in ordered})
    tones = [
        (tone, word)
        for tone, word in TONE_WORDS.items()
        if any(each.record.tone == tone for each in ordered)
    ]
    tools = (
        '<div class="board-tools"><div class="tool"><label for="board-text">Filter</label>'
        '<input type="search" id="board-text" data-filter="text"'
        ' placeholder="model, verdict, author"></div>'
        f"{_choice('Verdict', 'tone', tones)}"
        f"{_choice('Question', 'product', [(each, TASKS.get(each, each)) for each in products])}"
        f'<span class="count" role="status">{len(ordered)} reports</span></div>'
    )
    heads = "".join(
        f'<th scope="col"{far}><button type="button">{name}</button></th>'
        for name, far in (
            ("Verdict", ""), ("Model", ""), ("Question", ' class="far"'),
            ("Against", ' class="far"'), ("Date", ' class="when"'), ("Weights", ' class="far"'),
            ("By", ' class="far"'),
        )
    )  # fmt: skip
    rows = "".join(map(_row, ordered))
    return (
        f'<div class="assay board-all">{tools}<div class="board" role="region" tabindex="0"'
        f' aria-label="Reports"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody>'
        "</table></div></div>"
    )


def community(period: int | None = None) -> tuple[tuple[Found[ReportRecord], ...], str]:
    """What others published on the Hub, and a line where that is not known in time.

    Args:
        period: Of the answer that may be given again; by default the present one.
    """
    if period is None:
        period = int(monotonic() // FRESH_SECONDS)
    try:
        return _POOL.submit(_community, period).result(timeout=SECONDS)
    except TooLongError:  # who opens the page later gets it
        return (), LEFT_OUT


@lru_cache(maxsize=2)
def _community(_period: int) -> tuple[tuple[Found[ReportRecord], ...], str]:
    found: list[Found[ReportRecord]] = []
    try:
        listed = REPORTS.search(token=False)[:MAX_SETS]
    except AssayError as error:
        log.warning("%s", error)
        return (), LEFT_OUT
    for each in listed:
        try:
            found += all_in(REPORTS, each.repo_id, token=False, most=MAX_REPORTS)
        except AssayError as error:
            log.warning("%s", error)
    return tuple(found), ""


def _with_community() -> tuple[Any, str]:
    others, line = community()
    board = board_html([*visible(REPORTS), *others]) if others else gr.skip()
    return board, prose_html([line], "note") if line else ""


def _open(event: gr.EventData) -> str:
    """The report of the row that was chosen."""
    reference = str(getattr(event, "report", ""))[:300]
    try:
        found = REPORTS.find(check_reference(REPORTS, reference), token=False)
        report = load_report(found.folder)
    except AssayError as error:
        return prose_html([str(error)], "note")
    remarks = prose_html(found.remarks, "note")
    return remarks + kept_html(found.record, report, author=found.origin.author)


def _row(found: Found[ReportRecord]) -> str:
    record, origin = found.record, found.origin
    reference = f"{origin.id}@{origin.revision}" if origin.source == "hub" else found.name
    word = _text(record.verdict)
    badge = f'<span class="badge tone-{record.tone}">{symbol(record.tone)}{word}</span>'
    asked = _text(TASKS.get(record.product, record.product))
    model = _text(record.model.id)
    label = f"Open the report: {asked} of {model}, {word}"
    return (
        f'<tr data-tone="{record.tone}" data-product="{record.product}">'
        f'<td data-sort="{record.tone}">{badge}</td>'
        f'<td><button type="button" class="open" data-report="{escape(reference)}"'
        f' aria-label="{label}">{model}</button></td>'
        f'<td class="far">{asked}</td><td class="far">{_text(record.against or "")}</td>'
        f'<td class="date">{_text(record.created[:10])}</td>'
        f'<td class="far"><code>{_text(record.pinned)}</code></td>'
        f'<td class="far">{_text(origin.author or "modelassay")}</td></tr>'
    )


def _choice(label: str, name: str, values: Sequence[tuple[str, str]]) -> str:
    options = "".join(f'<option value="{value}">{_text(text)}</option>' for value, text in values)
    return (
        f'<div class="tool"><label for="board-{name}">{label}</label><select id="board-{name}"'
        f' data-filter="{name}"><option value="">all</option>{options}</select></div>'
    )


def _text(text: str) -> str:
    return escape(plain_line(text))
