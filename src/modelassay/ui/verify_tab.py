"""The Verify tab and the endpoints about baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from modelassay.report import Report, to_dict
from modelassay.ui.artifacts_tab import search_for_table, search_rows
from modelassay.ui.permitted import visible
from modelassay.ui.report_view import ReportView, prose_html
from modelassay.ui.running import (
    PRIVATE,
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
from modelassay.ui.service import run_create, run_verify
from modelassay.ui.sharing import report_buttons, report_files, shares_form
from modelassay.verify import BASELINES

EXAMPLES = [
    ["embedded", "embedded"],
    ["organism:bf16", "organism-safe"],
    ["organism:benign", "organism-safe"],
    ["organism:abliterated", "organism-safe"],
]


EXAMPLE = "verify-organism-abliterated-half"
NOTE = (
    "Is it the model that it claims to be? It is compared with a baseline, a measurement of the"
    " real one: hashes of files first, then weights and activations."
)


def create_verify_tab() -> gr.Textbox:
    """Builds the tab inside the current `gr.Blocks`; returns where the model is named."""
    gr.HTML(prose_html([NOTE]), padding=False)
    with gr.Row():
        with gr.Column(scale=1, min_width=300):
            model = model_box(
                "Model",
                "A Hub id (owner/name), `embedded`, or an organism such as `organism:benign`",
                "embedded",
            )
            against = gr.Dropdown(
                [each.name for each in visible(BASELINES)],
                value="embedded",
                allow_custom_value=True,
                label="Baseline",
                info="One of this list, or a Hub data set: owner/repo[:name][@revision]",
            )
            start, stop = start_and_stop("Verify")
            says_before("verify", [model])
            gr.Examples(EXAMPLES, [model, against])
            status = gr.Markdown()
            files = report_buttons()
            shares_form("verify", start, {"model": model, "against": against})
            with gr.Accordion("Find baselines on the Hub", open=False):
                gr.Markdown("Choose a row to verify against it.")
                wanted = gr.Textbox(label="Of the model", max_length=200)
                search = gr.Button("Search")
                found = gr.Dataframe(visible=False, show_label=False, wrap=True)
            with gr.Accordion("Make a baseline of the model", open=False):
                make = gr.Button("Measure")
                archive = gr.DownloadButton("Baseline (zip)", visible=False)
        with gr.Column(scale=3):
            view = ReportView(EXAMPLE)

    def show(report: Report, folder: Path) -> list[Any]:
        return [
            took(report),
            *view.updates(report),
            *report_files(report, model_name(report), folder),
        ]

    def show_baseline(result: tuple[dict[str, Any], bytes], folder: Path) -> list[Any]:
        index, data = result
        path = folder / f"{index['name']}.zip"
        path.write_bytes(data)
        return ["Measured.", gr.update(value=str(path), visible=True)]

    def search_for_page(model_id: str) -> dict[Any, Any]:
        said, table = search_for_table(BASELINES, model_id)
        return {status: said, found: table}

    outputs = [status, *view.components, *files]
    running = runs_on_click(start, run_verify, [model, against], outputs, "Not verified.", show)
    making = runs_on_click(
        make, run_create, [model], [status, archive], "Not measured.", show_baseline
    )
    stops(stop, [running, making], status)
    found.select(_pick, None, [against], **PRIVATE)
    search.click(search_for_page, [wanted], [status, found], **PRIVATE)
    gr.api(verify_endpoint, api_name="verify", **QUEUE)
    gr.api(create_endpoint, api_name="create_baseline", **QUEUE)
    gr.api(list_endpoint, api_name="list_baselines")
    gr.api(search_endpoint, api_name="search_baselines")
    return model


def verify_endpoint(model: str = "embedded", against: str = "") -> dict:
    """Check whether a model is the one that a baseline was made from.

    Args:
        model: A Hugging Face Hub id such as "owner/name", "embedded", or a model organism such as
            "organism:benign".
        against: A baseline's name (see list_baselines), the id of the model it was made from, or a
            Hub data set "owner/repo:name@revision"; empty takes the baseline of a model of this id.

    Returns:
        The report, schema "modelassay.verify/1": verified (true, false or null), kind, checks,
        baseline, reasons.
    """
    return to_dict(last_result(run_verify(model, against)))


def create_endpoint(model: str = "embedded") -> dict:
    """Measure a model and return the index of a baseline of it.

    Args:
        model: A Hugging Face Hub id such as "owner/name", "embedded", or a model organism.

    Returns:
        The index, schema "modelassay.baseline/1": model, sha256 of its files, separation of each
        concept, refusal. The vectors are left out; the page and the command line give them too.
    """
    return last_result(run_create(model))[0]


def list_endpoint() -> list:
    """List the baselines that a model can be verified against without the Hub.

    Returns:
        Name, model id and commit of each.
    """
    return [
        {"name": each.name, "model": each.model_id, "revision": each.record.model.revision}
        for each in visible(BASELINES)
    ]


def search_endpoint(model: str = "", author: str = "") -> list:
    """Search the Hugging Face Hub for data sets with baselines.

    Args:
        model: Only those with a baseline of this model id; empty for all.
        author: Only those of this namespace; empty for all.

    Returns:
        Data set id, author, commit and models of each.
    """
    keys = ("repo_id", "author", "revision", "models")
    return [{key: row[key] for key in keys} for row in search_rows(BASELINES, model, author)]


def _pick(event: gr.SelectData) -> str:
    """The baseline of the row of search results that was chosen, pinned to its commit."""
    repo_id, _, commit = event.row_value
    return f"{repo_id}@{commit}" if commit else repo_id
