"""What visitors take away of a result: files, a card, a badge, and a link that fills the form."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from modelassay.files.atomic import write_text_atomically
from modelassay.report import Report, to_html, to_json
from modelassay.report.badge import snippet, to_svg
from modelassay.report.card import to_png
from modelassay.report.headline import headline
from modelassay.report.text import plain_line
from modelassay.ui.publishing import create_publishing, published_values

KINDS = {"json": "JSON report", "html": "HTML report", "png": "Card (PNG)", "svg": "Badge (SVG)"}
"""Files of a report, by their suffix, and what their buttons say."""
LINKED = 4000
"""Characters of a link; a longer one is not offered."""
UNSEEN: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "queue": False,
}


def report_buttons() -> list[Any]:
    """Where a report can be fetched, and its badge copied, once there is one."""
    with gr.Row():
        buttons = [gr.DownloadButton(label, visible=False, size="sm") for label in KINDS.values()]
    shown = gr.Textbox(
        visible=False,
        label="Badge for a model card",
        info="Put the SVG beside the card, and this line into it.",
        interactive=True,  # else the keyboard does not get to it, and it has no name
    )
    return [*buttons, shown, *create_publishing()]


def report_files(report: Report, name: str, folder: Path) -> list[Any]:
    """Writes a report into a folder and gives the updates of its `report_buttons`.

    Args:
        report: What was found.
        name: Of the files, without suffix.
        folder: Where to.
    """
    stem = re.sub(r"[^\w.-]+", "_", plain_line(name))[-80:]
    found = headline(report)
    texts = {"json": to_json(report), "html": to_html(report), "svg": to_svg(found)}
    for suffix, text in texts.items():
        write_text_atomically(folder / f"{stem}.{suffix}", text)
    (folder / f"{stem}.png").write_bytes(to_png(found))
    files = [gr.update(value=str(folder / f"{stem}.{suffix}"), visible=True) for suffix in KINDS]
    badge = gr.update(value=snippet(found, image=f"{stem}.svg"), visible=True)
    return [*files, badge, *published_values(report)]


def shares_form(tab: str, start: gr.Button, form: Mapping[str, Any]) -> None:
    """Gives each run a link that fills the form as it was; to run it again needs a click.

    Args:
        tab: What the tab is called in links.
        start: The button of the run.
        form: Components by the names that their values have in links. Prompts do not belong here: a
            link is kept by browsers and servers.
    """
    link = gr.HTML(visible=False, container=False)

    def link_to(*values: Any) -> Any:
        address = address_of(tab, dict(zip(form, values, strict=True)))
        shown = f'<a href="{escape(address)}" target="_blank">Link to this form as it is filled</a>'
        return gr.update(value=shown, visible=len(address) <= LINKED)

    def fill(request: gr.Request) -> Any:
        asked = dict(request.query_params)
        mine = asked.get("tab") == tab
        found = [
            _given(component, asked.get(name) if mine else None) for name, component in form.items()
        ]
        return found[0] if len(found) == 1 else found

    start.click(link_to, list(form.values()), [link], **UNSEEN)
    gr.on(None, fill, None, list(form.values()), **UNSEEN)


def opens_linked_tab(tabs: gr.Tabs, ids: Mapping[str, str]) -> None:
    """Shows the tab whose form a link fills.

    Args:
        tabs: All of them.
        ids: Of a tab, by the names that links have for what is on it.
    """

    def choose(request: gr.Request) -> Any:
        asked = request.query_params.get("tab")
        return gr.Tabs(selected=ids[asked]) if asked in ids else gr.skip()

    gr.on(None, choose, None, [tabs], **UNSEEN)


def address_of(tab: str, values: Mapping[str, Any]) -> str:
    """Where the page fills a form in this way.

    It is of the Space's own host or of this page, never of a host that a request names.

    Args:
        tab: What the tab is called in links.
        values: By their names in links.
    """
    host = os.environ.get("SPACE_HOST", "").partition(",")[0].strip()
    said = {name: _text(value) for name, value in values.items() if value not in ("", None)}
    start = f"https://{host}/" if re.fullmatch(r"[\w.-]+", host) else ""
    return f"{start}?{urlencode({'tab': tab, **said})}"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _given(component: Any, text: str | None) -> Any:
    """What a link says of a component; what it cannot hold is left as it was."""
    if text is None:
        return gr.skip()
    if isinstance(component, gr.Checkbox):
        return text == "true" if text in ("true", "false") else gr.skip()
    if isinstance(component, gr.Slider):
        number = int(text) if re.fullmatch(r"\d{1,6}", text) else -1
        return number if component.minimum <= number <= component.maximum else gr.skip()
    if isinstance(component, gr.CheckboxGroup):
        chosen = text.split(",")
        return chosen if set(chosen) <= _choices(component) else gr.skip()
    if isinstance(component, gr.Radio | gr.Dropdown):
        free = isinstance(component, gr.Dropdown) and component.allow_custom_value
        return text[:200] if free or text in _choices(component) else gr.skip()
    return text[: getattr(component, "max_length", None) or 200]


def _choices(component: Any) -> set[Any]:
    return {value for _, value in component.choices}
