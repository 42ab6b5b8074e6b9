"""The Scan tab and the `/scan` endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.data.concepts import MODES
from modelassay.files.atomic import write_text_atomically
from modelassay.report import to_dict, to_html, to_json
from modelassay.scan.report import ScanReport, null_distribution, projections
from modelassay.ui.report_view import ReportView
from modelassay.ui.running import hidden, last_result, on_page
from modelassay.ui.service import CONCURRENCY_ID, run_scan
from modelassay.ui.stopping import stops

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
            model = gr.Textbox(
                "embedded",
                label="Model",
                info="A Hub id (owner/name), `embedded`, or an organism such as `organism:safe`",
                max_length=200,
            )
            mode = gr.Radio(list(MODES), value="standard", label="Mode")
            with gr.Accordion("More", open=False):
                compare = gr.Textbox(
                    label="Compare with",
                    info="A second model, scanned the same way",
                    max_length=200,
                )
                template = gr.Checkbox(True, label="Use the model's chat template")
            with gr.Row():
                start = gr.Button("Scan", variant="primary")
                stop = gr.Button("Stop", variant="stop")
            gr.Examples(EXAMPLES, [model, mode])
            status = gr.Markdown()
            with gr.Row():
                json_file = gr.DownloadButton("JSON report", visible=False)
                html_file = gr.DownloadButton("HTML report", visible=False)
        with gr.Column(scale=3):
            view = ReportView(*SECTIONS, charts=CHARTS)
            shown = gr.Dropdown(visible=False, label="Concept in detail")
            with gr.Row():
                scores = gr.Plot(visible=False, show_label=False)
                null = gr.Plot(visible=False, show_label=False)
    details = gr.State({})
    outputs = [status, *view.components, shown, scores, null, json_file, html_file, details]

    def scan_for_page(*inputs: Any) -> Iterator[dict[Any, Any]]:
        def show(report: ScanReport, folder: Path) -> dict[Any, Any]:
            return dict(zip(outputs, _show(view, report, folder), strict=True))

        cleared = hidden(outputs[1:-1])
        yield from on_page(run_scan(*inputs), status, cleared, "Not scanned.", show)

    running = start.click(
        scan_for_page,
        [model, mode, compare, template],
        outputs,
        concurrency_id=CONCURRENCY_ID,
        concurrency_limit=1,
        api_visibility="private",
        show_progress="hidden",
    )
    stops(stop, [running], status)
    shown.change(_detail_charts, [shown, details], [scores, null], api_visibility="private")
    gr.api(scan_endpoint, api_name="scan", concurrency_id=CONCURRENCY_ID, concurrency_limit=1)


def scan_endpoint(
    model: str = "embedded", mode: str = "standard", compare: str = "", chat_template: bool = True
) -> dict:
    """Scan an open-weight language model for intact safety training.

    Args:
        model: A Hugging Face Hub id such as "owner/name", "embedded" for the built-in specimen, or
            a model organism such as "organism:safe" or "organism:abliterated".
        mode: "quick" (weights and two concepts), "standard" (three concepts and behaviour) or
            "full" (all concepts).
        compare: A second model to scan the same way and compare with; empty for none.
        chat_template: Render prompts with the model's chat template.

    Returns:
        The report, schema "modelassay.scan/1": verdict, reasons, concepts, refusal, ablation.
    """
    return to_dict(last_result(run_scan(model, mode, compare, chat_template)))


def _show(view: ReportView, report: ScanReport, folder: Path) -> tuple[Any, ...]:
    """Values for all outputs, in their order."""
    name = re.sub(r"[^\w.-]+", "_", report.model.id)
    files = {folder / f"{name}.json": to_json(report), folder / f"{name}.html": to_html(report)}
    for path, text in files.items():
        write_text_atomically(path, text)
    json_path, html_path = (str(path) for path in files)
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
        gr.update(value=json_path, visible=True),
        gr.update(value=html_path, visible=True),
        details,
    )


def _detail_charts(concept: str, details: dict[str, list[Any]]) -> tuple[Any, Any]:
    import plotly.io

    if concept not in details:
        return gr.update(visible=False), gr.update(visible=False)
    first, second = (plotly.io.from_json(text) for text in details[concept])
    return gr.update(value=first, visible=True), gr.update(value=second, visible=True)
