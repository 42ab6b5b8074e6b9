"""A box that finds models on the Hub while their name is typed, and hands the chosen one on."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from modelassay.errors import AssayError
from modelassay.hub import ModelHit, find_models
from modelassay.report.text import plain_line
from modelassay.ui.running import PRIVATE

CHOOSE = """element.addEventListener('click', (event) => {
  const hit = event.target.closest('[data-model]');
  if (hit) trigger('select', {model: hit.dataset.model});
});"""


def create_model_search() -> gr.HTML:
    """Builds the box inside the current `gr.Blocks`.

    Returns:
        What has a `select` event whose data hold the chosen `model`.
    """
    typed = gr.Textbox(
        label="Find a model on the Hub",
        placeholder="Type a name, such as llama or qwen",
        info="Choose one to scan, verify or compare it",
        max_length=96,
    )
    hits = gr.HTML("", js_on_load=CHOOSE, padding=False, visible=False)
    # While one answer is on its way, of what is typed meanwhile only the last is asked for.
    typed.input(
        _show,
        [typed],
        [hits],
        trigger_mode="always_last",
        concurrency_limit=8,
        concurrency_id="search",
        queue=True,
        **PRIVATE,
    )
    return hits


def hits_html(text: str) -> str:
    """What was found, as buttons; one line where the Hub does not answer."""
    typed = text if isinstance(text, str) else ""
    if len(typed.strip()) < 2:
        return ""
    try:
        found = find_models(typed)
    except AssayError as error:
        return f'<p class="note" role="status">{escape(plain_line(str(error)))}</p>'
    if not found:
        return '<p class="note" role="status">The Hub has no model of such a name.</p>'
    items = "".join(f"<li>{_button(hit)}</li>" for hit in found)
    return f'<div class="assay"><ul class="hits" aria-label="Models found">{items}</ul></div>'


def _show(text: str) -> Any:
    html = hits_html(text)
    return gr.update(value=html, visible=bool(html))


def _button(hit: ModelHit) -> str:
    marks = [f"{_short(hit.downloads)} downloads"]
    marks += ["gated: needs a token"] if hit.gated else []
    marks += [f"changed {hit.updated[:10]}"] if hit.updated else []
    spans = "".join(f"<span>{escape(plain_line(each))}</span>" for each in marks)
    if hit.bases:
        how = hit.relation or "made"
        origin = escape(plain_line(f"by its card: {how} from {', '.join(hit.bases)}"))
        spans += f'<span class="from">{origin}</span>'
    model = escape(hit.id)
    return f'<button type="button" data-model="{model}"><b>{model}</b>{spans}</button>'


def _short(number: int) -> str:
    for limit, unit in ((1_000_000, "M"), (1_000, "k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return str(number)


def fill_on_choice(hits: gr.HTML, boxes: list[Any]) -> Any:
    """Lets a chosen model fill text boxes; returns the event, for what else follows it."""

    def chosen(event: gr.EventData) -> list[str]:
        return [str(getattr(event, "model", ""))[:200]] * len(boxes)

    return hits.select(chosen, None, boxes, **PRIVATE)
