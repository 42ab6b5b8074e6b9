"""The Scan tab and the `/scan` endpoint."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.data.concepts import MODES
from modelassay.report import to_dict
from modelassay.scan.report import ScanReport, null_distribution, projections
from modelassay.ui.running import (
    QUEUE,
    ReportView,
    last_result,
    model_box,
    runs_on_click,
    start_and_stop,
    stops,
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
SECTIONS = ("verdict", "concepts", "evidence", "model")
CHARTS = ("concepts", "evidence")


def create_scan_tab() -> None:
    """Builds the tab inside the current `gr.Blocks`."""
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
            gr.Examples(EXAMPLES, [model, mode])
            status = gr.Markdown()
            files = report_buttons()
            form = {"model": model, "mode": mode, "compare": compare}
            shares_form("scan", start, {**form, "template": template, "all": ask_all})
        with gr.Column(scale=3):
            view = ReportView(*SECTIONS, charts=CHARTS)
            shown = gr.Dropdown(visible=False, label="Concept in detail")
            with gr.Row():
                scores = gr.Plot(visible=False, show_label=False)
                null = gr.Plot(visible=False, show_label=False)
    details = gr.State({})
    outputs = [status, *view.components, shown, scores, null, *files, details]
    inputs = [model, mode, compare, template, ask_all]
    running = runs_on_click(start, run_scan, inputs, outputs, "Not scanned.", partial(_show, view))
    stops(stop, [running], status)
    shown.change(_detail_charts, [shown, details], [scores, null], api_visibility="private")
    gr.api(scan_endpoint, api_name="scan", **QUEUE)


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


def _show(view: ReportView, report: ScanReport, folder: Path) -> tuple[Any, ...]:
    """Values for all outputs, in their order."""
    # A session's state is copied and pickled around: plain figures as JSON, no report objects.
    details: dict[str, list[Any]] = {
        concept: [
            projections(concept, result.separation).to_json(),
            null_distribution(concept, result.separation).to_json(),
        ]
        for concept, result in report.concepts.items()
    }
    first = next(iter(details))
    seconds = report.provenance["seconds"]
    return (
        f"Done in {seconds['scan']:.0f} s after {seconds['loading']:.0f} s of loading.",
        *view.updates(report),
        gr.update(choices=list(details), value=first, visible=True),
        *_detail_charts(first, details),
        *report_files(report, report.model.id, folder),
        details,
    )


def _detail_charts(concept: str, details: dict[str, list[Any]]) -> tuple[Any, Any]:
    import plotly.io

    if concept not in details:
        return gr.update(visible=False), gr.update(visible=False)
    first, second = (plotly.io.from_json(text) for text in details[concept])
    return gr.update(value=first, visible=True), gr.update(value=second, visible=True)
