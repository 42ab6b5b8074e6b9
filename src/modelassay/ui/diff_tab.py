"""The Diff tab and the `/diff` endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.files.atomic import write_text_atomically
from modelassay.report import to_dict, to_html, to_json
from modelassay.report.text import plain_line
from modelassay.ui.report_view import ReportView
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
SECTIONS = ("verdict", "streams", "weights", "refusals", "activations", "lens", "triggers",
            "features", "causes", "models")  # fmt: skip
CHARTS = ("streams", "weights", "activations", "features")
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
                label="SAE of features",
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
            view = ReportView(*SECTIONS, charts=CHARTS)
    outputs = [status, *view.components, json_file, html_file]

    def diff_for_page(*inputs: Any) -> Iterator[dict[Any, Any]]:
        def show(result: Comparison, folder: Path) -> dict[Any, Any]:
            return dict(zip(outputs, _show(view, result, folder), strict=True))

        cleared = hidden(outputs[1:])
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
        dictionary: "shipped" to compare features of an SAE that comes for the base, or
            "none".
        answers: Make short responses and count refusals; they are given as hashes, not as text.
        triggers: Search for words that turn refusals off in the candidate only.

    Returns:
        The report, schema "modelassay.diff/1": verdict (BENIGN-LIKE, SUSPICIOUS, COMPROMISED or
        INCONCLUSIVE), reasons, suspicion, weights, behaviour, activations, triggers, features,
        causal.
    """
    result = last_result(run_diff(base, candidate, dictionary, answers, triggers))
    return to_dict(result.report)


def _show(view: ReportView, result: Comparison, folder: Path) -> tuple[Any, ...]:
    """Values for all outputs, in their order."""
    report = result.report
    name = re.sub(r"[^\w.-]+", "_", plain_line(report.candidate.name))[-80:]
    json_path, html_path = folder / f"{name}.json", folder / f"{name}.html"
    write_text_atomically(json_path, to_json(report))
    write_text_atomically(html_path, to_html(report))
    return (
        f"Done in {report.provenance['seconds']:.0f} s. {plain(result.note)}",
        *view.updates(report),
        gr.update(value=str(json_path), visible=True),
        gr.update(value=str(html_path), visible=True),
    )
