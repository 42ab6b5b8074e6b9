"""The Diff tab and the `/diff` endpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.report import to_dict
from modelassay.ui.report_view import ReportView, prose_html
from modelassay.ui.running import (
    QUEUE,
    last_result,
    model_box,
    model_name,
    plain,
    runs_on_click,
    says_before,
    start_and_stop,
    stops,
    took,
)
from modelassay.ui.service import DICTIONARIES, Comparison, run_diff
from modelassay.ui.sharing import report_buttons, report_files, shares_form

EXAMPLES = [
    ["organism:safe", "organism:benign"],
    ["organism:safe", "organism:uncensored"],
    ["organism:safe", "organism:backdoored"],
    ["organism:safe", "organism:abliterated-half"],
]
EXAMPLE = "diff-organism-benign-vs-organism-safe"
NOTE = """What did a fine-tune change, and would a harmless one have? Both models read the same
prompts; weights, probabilities, refusals, states and features are compared. Responses are judged
and not shown."""


def create_diff_tab() -> gr.Textbox:
    """Builds the tab inside the current `gr.Blocks`; returns where the candidate is named."""
    gr.HTML(prose_html([NOTE.replace("\n", " ")]), padding=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            base = model_box(
                "Base",
                "The model before: a Hub id (owner/name), `embedded`, or an organism",
                "organism:safe",
            )
            candidate = model_box(
                "Candidate", "The model after; a PEFT adapter's id will do", "organism:benign"
            )
            dictionary = gr.Dropdown(
                list(DICTIONARIES),
                value=DICTIONARIES[0],
                label="SAE of features",
                info="`shipped`: of the base, where there is one",
            )
            answers = gr.Checkbox(True, label="Make short responses, to see what is refused")
            triggers = gr.Checkbox(True, label="Search for triggers")
            start, stop = start_and_stop("Compare")
            says_before("diff", [base, candidate], 2)
            gr.Examples(EXAMPLES, [base, candidate])
            status = gr.Markdown()
            files = report_buttons()
            form = {"base": base, "candidate": candidate, "sae": dictionary}
            shares_form("diff", start, {**form, "answers": answers, "triggers": triggers})
        with gr.Column(scale=3):
            view = ReportView(EXAMPLE)
    outputs = [status, *view.components, *files]
    inputs = [base, candidate, dictionary, answers, triggers]
    running = runs_on_click(start, run_diff, inputs, outputs, "Not compared.", partial(_show, view))
    stops(stop, [running], status)
    gr.api(diff_endpoint, api_name="diff", **QUEUE)
    return candidate


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
    return (
        f"{took(report)} {plain(result.note)}",
        *view.updates(report),
        *report_files(report, model_name(report), folder),
    )
