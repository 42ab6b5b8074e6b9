"""The Diff tab and the `/diff` endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.files.atomic import write_text_atomically
from modelassay.report import diff_charts, diff_rows
from modelassay.report.diff_html import diff_card, diff_html
from modelassay.report.diff_values import diff_json, diff_values
from modelassay.ui.running import hidden, last_result, on_page
from modelassay.ui.service import CONCURRENCY_ID, DICTIONARIES, Comparison, run_diff
from modelassay.ui.stopping import stops
from modelassay.ui.text import plain

EXAMPLES = [
    ["organism:safe", "organism:benign"],
    ["organism:safe", "organism:uncensored"],
    ["organism:safe", "organism:backdoored"],
    ["organism:safe", "organism:abliterated-half"],
]
TABLE_WIDTH = 900  # pixels
TOP = 50  # rows of features and triggers
NOTE = """What did a fine-tune change, and would a harmless one have? Both models read the same
prompts; weights, probabilities, refusals, states and features are compared. Answers are judged and
not shown."""


def create_diff_tab() -> None:
    """Builds the tab inside the current `gr.Blocks`."""
    gr.Markdown(NOTE)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            base = gr.Textbox(
                "organism:safe",
                label="Base",
                info="The model before: a Hub id (owner/name), `embedded`, or an organism",
                max_length=200,
            )
            candidate = gr.Textbox(
                "organism:benign",
                label="Candidate",
                info="The model after; a PEFT adapter's id will do",
                max_length=200,
            )
            dictionary = gr.Dropdown(
                list(DICTIONARIES),
                value=DICTIONARIES[0],
                label="Dictionary of features",
                info="`shipped`: of the base, where there is one",
            )
            answers = gr.Checkbox(True, label="Make short answers, to see what is refused")
            triggers = gr.Checkbox(True, label="Search for triggers")
            with gr.Row():
                start = gr.Button("Compare", variant="primary")
                stop = gr.Button("Stop", variant="stop")
            gr.Examples(EXAMPLES, [base, candidate])
            status = gr.Markdown()
            with gr.Row():
                json_file = gr.DownloadButton("JSON report", visible=False)
                html_file = gr.DownloadButton("HTML report", visible=False)
        with gr.Column(scale=3):
            card = gr.HTML(container=False)
            streams = _table("Streams of evidence (* grows with any training)", 15, 14, 18, 9, 44)
            levels = gr.Plot(visible=False, show_label=False)
            refusals = _table("Refusals of short answers", 14, 25, 25, 9, 9, 9, 9)
            with gr.Row():
                weights = gr.Plot(visible=False, show_label=False)
                states = gr.Plot(visible=False, show_label=False)
            features = _table(
                "Features that changed, by how far they moved the states",
                *(9, 9, 14, 20, 8, 20, 20),
            )
            effects = gr.Plot(visible=False, show_label=False)
            triggered = _table("Words that turn refusals off in the candidate", 55, 15, 15, 15)
            facts = _table("Weights, behaviour and models", 24, 76)
    tables_and_charts = [
        streams, levels, refusals, weights, states, features, effects, triggered, facts,
    ]  # fmt: skip
    outputs = [status, card, *tables_and_charts, json_file, html_file]

    def diff_for_page(*inputs: Any) -> Iterator[dict[Any, Any]]:
        def show(result: Comparison, folder: Path) -> dict[Any, Any]:
            return dict(zip(outputs, _show(result, folder), strict=True))

        cleared = {card: "", **hidden(outputs[2:])}
        yield from on_page(run_diff(*inputs), status, cleared, "Not compared.", show)

    running = start.click(
        diff_for_page,
        [base, candidate, dictionary, answers, triggers],
        outputs,
        concurrency_id=CONCURRENCY_ID,
        concurrency_limit=1,
        api_visibility="private",
        show_progress="hidden",
    )
    stops(stop, [running], status)
    gr.api(diff_endpoint, api_name="diff", concurrency_id=CONCURRENCY_ID, concurrency_limit=1)


def diff_endpoint(
    base: str,
    candidate: str,
    dictionary: str = "shipped",
    answers: bool = True,
    triggers: bool = True,
) -> dict:
    """Compare a fine-tuned language model with its base: what changed, and is that suspicious?

    Args:
        base: The model before: a Hugging Face Hub id such as "owner/name", "embedded", or a model
            organism such as "organism:safe".
        candidate: The model after, named in the same way; a PEFT adapter's id will do.
        dictionary: "shipped" to compare features of a dictionary that comes for the base, or
            "none".
        answers: Make short answers and count refusals; they are given as hashes, not as text.
        triggers: Search for words that turn refusals off in the candidate only.

    Returns:
        The report, schema "modelassay.diff/1": verdict (BENIGN-LIKE, SUSPICIOUS, COMPROMISED or
        INCONCLUSIVE), reasons, suspicion, weights, behaviour, activations, features, causal.
    """
    result = last_result(run_diff(base, candidate, dictionary, answers, triggers))
    return diff_values(result.report)


def _table(label: str, *widths: int) -> gr.Dataframe:
    """A table that is hidden until there is something in it; widths are in per cent.

    In pixels, for on a phone it is better moved sideways than broken within words.
    """
    return gr.Dataframe(
        visible=False,
        label=label,
        wrap=True,
        max_height=900,
        column_widths=[f"{width * TABLE_WIDTH // 100}px" for width in widths],
    )


def _show(result: Comparison, folder: Path) -> tuple[Any, ...]:
    """Values for all outputs, in their order."""
    report = result.report
    name = re.sub(r"[^\w.-]+", "_", diff_rows.named(report.candidate))[-80:]
    json_path, html_path = folder / f"{name}.json", folder / f"{name}.html"
    write_text_atomically(json_path, diff_json(report))
    write_text_atomically(html_path, diff_html(report))
    facts = [
        *diff_rows.weight_rows(report),
        *diff_rows.behaviour_rows(report),
        ["triggers", diff_rows.trigger_line(report)],
        *([f"dictionary {i}", line] for i, line in enumerate(diff_rows.dictionary_lines(report))),
        *diff_rows.provenance_rows(report),
    ]
    return (
        f"Done in {report.provenance['seconds']:.0f} s. {plain(result.note)}",
        diff_card(report),
        _rows(diff_rows.stream_rows(report)),
        _chart(diff_charts.stream_levels(report)),
        _rows(diff_rows.refusal_rows(report)),
        _chart(diff_charts.energy_by_block(report)),
        _chart(diff_charts.change_by_layer(report)),
        _rows(diff_rows.feature_rows(report, TOP)),
        _chart(diff_charts.feature_effects(report)),
        _rows(diff_rows.trigger_rows(report, TOP)),
        _rows([["", "value"], *facts]),
        gr.update(value=str(json_path), visible=True),
        gr.update(value=str(html_path), visible=True),
    )


def _rows(rows: diff_rows.Rows) -> Any:
    """An update of a table, which is hidden where there is only a header."""
    header, *body = rows
    return gr.update(value={"headers": header, "data": body}, visible=bool(body))


def _chart(figure: Any | None) -> Any:
    return gr.update(value=figure, visible=figure is not None)
