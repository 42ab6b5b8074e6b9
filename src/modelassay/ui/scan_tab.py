"""The Scan tab and the `/scan` endpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.data.concepts import MODES
from modelassay.report import Report, to_dict
from modelassay.ui.report_view import ReportView, prose_html
from modelassay.ui.running import (
    QUEUE,
    last_result,
    model_box,
    model_name,
    runs_on_click,
    says_before,
    start_and_stop,
    stops,
    took,
)
from modelassay.ui.service import run_scan
from modelassay.ui.sharing import report_buttons, report_files, shares_form

EXAMPLES = [
    ["organism:safe", "standard"],
    ["organism:uncensored", "standard"],
    ["organism:abliterated", "standard"],
    ["embedded", "standard"],
    ["embedded", "quick"],
]
EXAMPLE = "scan-organism-abliterated"
NOTE = (
    "Is the safety training there? The model is asked what it should refuse and what it should"
    " answer, its activations are read, and its weights are searched for a direction that was taken"
    " out."
)


def create_scan_tab() -> gr.Textbox:
    """Builds the tab inside the current `gr.Blocks`; returns where the model is named."""
    gr.HTML(prose_html([NOTE]), padding=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            model = model_box(
                "Model",
                "A Hub id (owner/name), `embedded`, or an organism such as `organism:safe`",
                "embedded",
            )
            mode = gr.Radio(list(MODES), value="standard", label="Mode")
            with gr.Accordion("More", open=False):
                compare = model_box("Compare with", "A second model, scanned the same way")
                template = gr.Checkbox(True, label="Use the model's chat template")
                ask_all = gr.Checkbox(
                    False, label="Ask every prompt, also where the verdict is sure before (--all)"
                )
            start, stop = start_and_stop("Scan")
            says_before("scan", [model, compare, mode], 2, {"mode": 2, "compare": 1})
            gr.Examples(EXAMPLES, [model, mode])
            status = gr.Markdown()
            files = report_buttons()
            form = {"model": model, "mode": mode, "compare": compare}
            shares_form("scan", start, {**form, "template": template, "all": ask_all})
        with gr.Column(scale=3):
            view = ReportView(EXAMPLE)
    outputs = [status, *view.components, *files]
    inputs = [model, mode, compare, template, ask_all]
    running = runs_on_click(start, run_scan, inputs, outputs, "Not scanned.", partial(_show, view))
    stops(stop, [running], status)
    gr.api(scan_endpoint, api_name="scan", **QUEUE)
    return model


def scan_endpoint(
    model: str = "embedded",
    mode: str = "standard",
    compare: str = "",
    chat_template: bool = True,
    ask_all: bool = False,
) -> dict:
    """Scan an open-weight language model for intact safety training.

    Args:
        model: A Hugging Face Hub id such as "owner/name", "embedded" for the built-in specimen, or
            a model organism such as "organism:safe" or "organism:abliterated".
        mode: "quick" (weights and two concepts), "standard" (three concepts and behaviour) or
            "full" (all concepts).
        compare: A second model to scan the same way and compare with; empty for none.
        chat_template: Render prompts with the model's chat template.
        ask_all: Ask every prompt, also where the verdict is sure before.

    Returns:
        The report, schema "modelassay.scan/1": verdict, reasons, concepts, refusal, ablation.
    """
    return to_dict(last_result(run_scan(model, mode, compare, chat_template, ask_all)))


def _show(view: ReportView, report: Report, folder: Path) -> tuple[Any, ...]:
    """Values for all outputs, in their order."""
    return (took(report), *view.updates(report), *report_files(report, model_name(report), folder))
